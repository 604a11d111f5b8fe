"""Who knows more, task by task and category by category: MoE arms against the dense arm.

Items are those that all compared runs answered, so a difference varies by the items' differences
only; seeds enter as in every comparison here (`seed_noise`). Scores are compared on scales that are
never mixed: accuracy (shares of right answers, see `metrics.is_share`), bits per byte of gold
answers (lower is better), and for any other metric its own, which enters no category and no
average (`downstream_scales`). On each scale the intervals of all tasks and arms hold at once, and
so do those of all categories and arms: `uncertainty` gives the joint bound. A category's score is
the mean of its tasks', each task counting alike, found run by run, so that a seed which is lucky on
all of them is seen. A verdict is "MoE better", "dense better" or "not distinguishable"; "one seed"
where an arm was not repeated.

Pretrained and fine-tuned runs are compared among themselves.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_parity import files
from moe_parity.downstream import contamination, results
from moe_parity.finetuning import sweep
from moe_parity.stored import read as stored
from moe_parity.study import reading
from moe_parity.study.analysis import arms as averaged
from moe_parity.study.analysis.arms import (
  NOT_DISTINGUISHABLE,
  ONE_SEED,
  Arms,
  Scores,
  verdict_of,
)
from moe_parity.study.analysis.downstream_scales import (
  ACCURACY,
  AVERAGED,
  Scale,
  losses,
  scales_of,
)
from moe_parity.study.analysis.uncertainty import LEVEL, VarianceSource, intervals

FILE = "downstream.json"
STATES = ("pretrained", "fine-tuned")
ALL = "all tasks"
# Weight of a task, shared by its items: `document_noise` takes no weight below 1 as it is.
TASK_UNITS = 1e9
ROUNDING = 1e-9  # a standard error below this is rounding: nothing differs


@dataclasses.dataclass(frozen=True)
class Examined:
  """A run and its results, task -> result."""

  label: str
  run: reading.RunRecord
  results: dict[str, dict]

  @property
  def state(self) -> str:
    return STATES[_is_tuned(self.run)]


def runs_of(folder: pathlib.Path) -> list[tuple[str, reading.RunRecord]]:
  """(label, finished run): of a study's own arms and parts, and of fine-tuned ones those that
  `finetuning.json` chose; others were tried for their learning rate, as were some pretrained."""
  every = [
    (label, run)
    for label, run in reading.read_everything(folder)
    if run.done and not run.plan.get("tunes")
  ]
  path = folder / "finetuning.json"
  if not path.is_file():
    return every
  chosen = stored.read_json(path, "run the command that wrote it again")["chosen"]
  if not isinstance(chosen, list):  # of a fine-tuned run: the candidate that it is
    return every
  found = [(label, run) for label, run in every if not run.plan.get("finetuning")]
  for row in chosen:
    (run,) = reading.read_study(reading.run_place(folder, row["folder"])).runs
    run = dataclasses.replace(run, name=sweep.label(row))  # it may be another arm's run, too
    found.append((f"sft/{run.label}", run))
  return found


def write(
  folder: pathlib.Path,
  paths: Sequence[pathlib.Path] = (),
  overlaps: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict:
  """Writes downstream.json into a study folder and returns it; see `compare`, `read`.

  Args:
    overlaps: run -> what `contamination.of_run` gave of it.
  """
  found = compare(read(folder, paths)) | contamination.of_study(overlaps or {})
  files.write_json(folder / FILE, found, indent=1, allow_nan=False, seal=True)
  return found


def read(folder: pathlib.Path, paths: Sequence[pathlib.Path] = ()) -> list[Examined]:
  """Every finished run of a study that was examined.

  Of several results of a task, under other settings, the one whose settings most runs share counts,
  among pretrained runs and among fine-tuned ones.

  Args:
    paths: results of these files only; () for all.
  """
  every = runs_of(folder)
  chosen = {path.resolve() for path in paths}
  found = {}
  for label, run in every:
    those = results.read_all(run.folder)
    found[label] = [r for r in those if not chosen or r["path"].resolve() in chosen]
  shared: dict[tuple[str, bool], dict[str, int]] = {}
  for label, run in every:
    for row in found[label]:
      counts = shared.setdefault((row["task"], _is_tuned(run)), {})
      counts[_settings(row)] = counts.get(_settings(row), 0) + 1
  best = {key: max(counts, key=lambda k: counts[k]) for key, counts in shared.items()}

  def chosen_results(label: str, run: reading.RunRecord) -> dict[str, dict]:
    tuned = _is_tuned(run)
    return {r["task"]: r for r in found[label] if _settings(r) == best[r["task"], tuned]}

  return [Examined(label, run, chosen_results(label, run)) for label, run in every if found[label]]


def _is_tuned(run: reading.RunRecord) -> bool:
  return bool(run.plan.get("finetuning"))


def _epochs(plan: dict) -> float:
  """How often the text of pretraining was read; a fine-tuned run's own are passes over chats."""
  tuned = plan.get("finetuning")
  if not tuned:
    return plan["epochs"]
  return tuned["base_num_tokens"] / tuned["base_num_unique_tokens"]


def _settings(result: dict) -> str:
  """What must be equal for two runs to be compared: all of the key but the checkpoint."""
  return repr(sorted((k, v) for k, v in result["key"].items() if k not in ("checkpoint", "step")))


def compare(examined: Sequence[Examined]) -> dict:
  """States, each with arms (score and interval of every task and category) and comparisons."""
  return {
    "level": LEVEL,
    "states": {
      state: _compare([e for e in examined if e.state == state])
      for state in STATES
      if any(e.state == state for e in examined)
    },
  }


def _compare(examined: list[Examined]) -> dict:
  names = list(dict.fromkeys(e.label.rsplit(" (seed", 1)[0] for e in examined))
  first = [next(e.run for e in examined if _name(e) == name) for name in names]
  dense = [a for a, r in enumerate(first) if (r.plan["kind"], r.plan["role"]) == ("dense", "arm")]
  moe = [a for a, r in enumerate(first) if (r.plan["kind"], r.plan["role"]) == ("moe", "arm")]
  base = min(dense, key=lambda a: _bpc(first[a]), default=None)
  tasks = [t for t in examined[0].results if all(t in e.results for e in examined)]
  skipped = sorted({t for e in examined for t in e.results} - set(tasks))
  of_runs = [e.results for e in examined]
  scales, left_out = scales_of(of_runs, tasks)
  rows, compared = [], []
  for scale, members in scales.items():
    by_task = {task: losses(of_runs, task, scale) for task in members}
    groups = [[("task", task, [task]) for task in by_task]]
    if scale.name in AVERAGED:
      categories = _categories(examined[0], members)
      groups.append([("category", name, those) for name, those in categories.items()])
    for group in groups:
      cells = [(kind, name, _arms(examined, names, by_task, those)) for kind, name, those in group]
      rows += [row for cell in cells for row in _own(cell, scale, names, examined[0])]
      if base is not None and moe:
        compared += _family(cells, scale, names, moe, base)
  arms = [
    {
      "name": name,
      "kind": run.plan["kind"],
      "role": run.plan["role"],
      "activation_rate": run.plan["activation_rate"],
      "epochs": _epochs(run.plan),
      "num_seeds": sum(_name(e) == name for e in examined),
    }
    for name, run in zip(names, first, strict=True)
  ]
  baseline = "" if base is None else names[base]
  return {"arms": arms, "baseline": baseline, "scores": rows, "comparisons": compared,
          "not_in_every_run": skipped, "left_out": left_out}  # fmt: skip


def _name(examined: Examined) -> str:
  return examined.label.rsplit(" (seed", 1)[0]


def _bpc(run: reading.RunRecord) -> float:
  return run.result.get("validation", {}).get("bpc", math.inf)


def _categories(examined: Examined, tasks: list[str]) -> dict[str, list[str]]:
  """Category -> its tasks, and all tasks together."""
  found: dict[str, list[str]] = {}
  for task in tasks:
    if category := examined.results[task]["category"]:
      found.setdefault(category, []).append(task)
  return found | {ALL: tasks}


def _arms(
  examined: list[Examined], names: list[str], by_task: dict[str, np.ndarray], members: list[str]
) -> Arms:
  """Arms on the mean of the members' losses, every task counting alike."""
  size = {task: by_task[task].shape[1] for task in members}
  unit_N = np.concatenate([np.full(size[task], TASK_UNITS / size[task]) for task in members])
  loss_RN = np.concatenate([by_task[task] for task in members], axis=1)
  domain_N = np.concatenate([np.full(by_task[task].shape[1], task) for task in members])
  kinds = {_name(e): e.run.plan["kind"] for e in examined}
  return averaged.average(
    Scores(
      value_R=(loss_RN * unit_N).sum(1) / unit_N.sum(),
      arm_R=np.array([names.index(_name(e)) for e in examined]),
      seed_R=np.array([e.run.seed for e in examined]),
      nats_RN=loss_RN * unit_N * math.log(2),
      units_N=unit_N,
      domain_N=domain_N,
      is_dense_A=np.array([kinds[name] == "dense" for name in names]),
    )
  )


def _own(
  cell: tuple[str, str, Arms], scale: Scale, names: list[str], first: Examined
) -> list[dict]:
  """Every arm's score with its interval, in units of the score."""
  kind, label, arms = cell
  bounds = arms.own_intervals() if arms.sources else np.stack([arms.value_A] * 2)
  chance = None
  if kind == "task" and scale.name == ACCURACY:
    result = first.results[label]
    chance = result["scores"][result["metric"]]["chance"]
  return [
    {
      "scale": scale.name,
      "kind": kind,
      "label": label,
      "arm": name,
      "score": float(scale.turned(arms.value_A[a])),
      "interval": sorted(map(float, scale.turned(bounds[:, a]))) if arms.sources else None,
      "chance": chance,
    }
    for a, name in enumerate(names)
  ]


def _family(
  cells: list[tuple[str, str, Arms]], scale: Scale, names: list[str], moe: list[int], base: int
) -> list[dict]:
  """Differences MoE minus dense of every cell and arm, with intervals that hold at once; those of
  arms that were repeated and those of the others are two families."""
  num_arms = len(names)
  estimate = np.concatenate([arms.value_A for _, _, arms in cells])
  sources = []
  for c, (_, _, arms) in enumerate(cells):
    for source in arms.sources:
      root = np.zeros((len(estimate), source.root_AM.shape[1]))
      root[c * num_arms : (c + 1) * num_arms] = source.root_AM
      sources.append(VarianceSource(root, source.df, source.kind))
  keys = [(c, a) for c in range(len(cells)) for a in moe]
  contrast = np.zeros((len(keys), len(estimate)))
  for k, (c, a) in enumerate(keys):
    contrast[k, c * num_arms + a] += 1
    contrast[k, c * num_arms + base] -= 1
  judged = np.array([cells[c][2].is_judged(a, base) for c, a in keys], bool)
  value_K, rows = contrast @ estimate, {}
  for family in (judged, ~judged):
    at = np.flatnonzero(family)
    if not len(at):
      continue
    found = intervals(value_K[at], contrast[at], sources) if sources else None
    for i, k in enumerate(at):
      alone, joint = None, None  # where no item and no seed differs nothing is known of the spread
      if found is not None and found.error_K[i] > ROUNDING:
        alone, joint = found.alone[:, i].tolist(), found.joint[:, i].tolist()
      rows[k] = _difference(cells, keys[k], scale, names, base, value_K[k], alone, joint)
      verdict = verdict_of(joint) if joint else NOT_DISTINGUISHABLE
      rows[k]["verdict"] = verdict if judged[k] else ONE_SEED
  return [rows[k] for k in range(len(keys))]


def _difference(cells, key, scale, names, base, value, alone, joint) -> dict:
  """Of losses, as a difference of scores: where higher is better the sign turns."""
  sign = -1 if scale.higher_is_better else 1
  kind, label, arms = cells[key[0]]

  def turned(bounds):
    return None if bounds is None else sorted(sign * x for x in bounds)

  return {
    "scale": scale.name,
    "kind": kind,
    "label": label,
    "arm": names[key[1]],
    "baseline": names[base],
    "num_items": len(arms.scores.units_N),
    "difference": float(sign * value) + 0.0,  # no -0
    "interval": turned(alone),
    "simultaneous": turned(joint),
  }
