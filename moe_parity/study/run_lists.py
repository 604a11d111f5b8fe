"""Do a study's files agree on which runs it has, and on what its plan was derived from?

plan.json, study.json, the config in it, the config of every run and the folders on disk each name
the runs of a study. An arm, a control or a seed that one of them lacks was taken out of the
comparison, and one that only study.json has is in no check of the certificate.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from moe_parity import config as configs
from moe_parity.planning.targets import RATE_TOLERANCE
from moe_parity.study.evidence import line
from moe_parity.study.reading import is_finetuning
from moe_parity.training import run_folder

# Of a budget, what a plan takes over from the config as it stands.
_BUDGET = ("num_params", "seq_len", "reuse", "convention", "params_tolerance", "flops_tolerance",
           "batch_multiple", "held_fixed")  # fmt: skip
Key = tuple[str, int]  # name and seed


def run_list_checks(
  folder: pathlib.Path,
  places: Sequence[tuple[dict, str]],
  info: dict,
  run_configs: Mapping[str, dict],
) -> Iterator[dict]:
  """Lines of the study's certificate: what is a run of it by one file and not by another.

  Args:
    places: plan and run folder, relative to `folder`, of every arm of plan.json.
    info: study.json. run_configs: config.json of each run, by its folder as in `places`.
  """
  planned = [(arm["name"], arm["seed"]) for arm, _ in places]
  twice = {key for key in planned if planned.count(key) > 1}
  yield _line("runs of plan.json", "each once", twice, "listed twice", "plan.json")
  done = {
    (arm["name"], arm["seed"])
    for arm, place in places
    if (folder / place / run_folder.RESULT).exists()
  }
  if info:
    listed = {(arm["name"], arm["seed"]) for arm in info["arms"]}
    yield _line("runs of study.json", "those of plan.json", listed.difference(planned),
                "not in plan.json", "study.json, plan.json")  # fmt: skip
    yield _line("finished runs of plan.json", "in study.json", done - listed,
                "not in study.json: run the study again", "study.json, plan.json")  # fmt: skip
    if info["config"].get("arms") and not is_finetuning(folder.name):
      named = _runs_of(info["config"])
      yield _line("arms of the config", "those of study.json", named ^ listed,
                  "in one of the two alone", "study.json")  # fmt: skip
  own = [c for place, c in run_configs.items() if c.get("arms") and ".." not in place]
  if not is_finetuning(folder.name):
    named = set().union(*map(_runs_of, own))
    yield _line("arms that the runs' configs name", "in plan.json", named.difference(planned),
                "not in plan.json", "config.json of each run")  # fmt: skip
  known = {(folder / place).resolve() for _, place in places}
  others = {
    path.parent.name
    for path in (folder / "runs").glob(f"*/{run_folder.RESULT}")
    if path.parent.resolve() not in known
  }
  yield _line("finished runs in runs/", "in plan.json", others, "in no plan: move it away, or"
              " restore plan.json and study.json", "folders with a result.json")  # fmt: skip


def _line(name: str, planned: str, keys: set, wrong: str, how: str) -> dict:
  """Passes without any key; else names the first three."""
  names = sorted(key if isinstance(key, str) else f"{key[0]} (seed {key[1]})" for key in keys)
  more = f" and {len(names) - 3} more" if names[3:] else ""
  words = f"{', '.join(names[:3])}{more}: {wrong}" if names else planned
  return line(name, planned, words, not names, how)


def _runs_of(config: dict) -> set[Key]:
  """Name and seed of every run that a stored config asks for."""
  return {
    (name, seed)
    for name, arm in config["arms"].items()
    for seed in arm.get("seeds") or (config.get("seed", 0),)
  }


def plan_checks(
  folder: pathlib.Path, plan: dict, budget: dict, info: dict, run_configs: Mapping[str, dict]
) -> Iterator[dict]:
  """Whether the budget and the arms of plan.json are those of the config that study.json holds.

  Args:
    budget: of plan.json, its fields by the names of today. The rest as of `run_list_checks`.
  """
  if is_finetuning(folder.name) or not info.get("config", {}).get("budget"):
    return
  config = configs.from_stored(info["config"])
  decided = {name: config["budget"][name] for name in _BUDGET if name in config["budget"]}
  planned = {name: budget[name] for name in decided if name in budget}
  how = "the config in study.json, plan.json"
  yield _same("budget", {name: decided[name] for name in planned}, planned, how)
  others = {
    f"{place.rpartition('/')[2]} ({'; '.join(changed[:3])})"
    for place, own in run_configs.items()
    if ".." not in place and "budget" in own  # a shared run was trained at its own study's budget
    and (changed := configs.differences(decided, _budget_of(own, decided)))
  }  # fmt: skip
  yield _line("budget in the configs of the runs", "that of study.json", others, "another one",
              "config.json of each run")  # fmt: skip
  arms = plan.get("arms") or ()
  yield from _shared_amounts(config["budget"], budget, arms)
  specs = config.get("arms", {})
  others = {
    f"{arm['name']} (seed {arm['seed']}: {problem})"
    for arm in arms
    if (problem := _undecided(specs.get(arm["name"], {}), arm))
  }
  yield _line("arms of plan.json", "as the config decides them", others, "not as decided", how)


def _budget_of(config: dict, names: Mapping[str, object]) -> dict:
  """The fields of that name of a stored config's budget."""
  budget = configs.from_stored(config)["budget"]
  return {name: budget.get(name) for name in names}


def _same(name: str, wanted: dict, found: dict, how: str) -> dict:
  changed = configs.differences(wanted, found)
  words = "; ".join(changed[:3]) or "the same"
  return line(name, "as in the config", words, not changed, how)


def _shared_amounts(decided: dict, budget: dict, arms: Sequence[dict]) -> Iterator[dict]:
  """C, which the config gives or the dense arm's tokens do, and whether unique data are equal."""
  compared = [arm for arm in arms if arm["role"] == "arm"]
  dense = [arm["train_flops_per_token"] for arm in compared if arm["kind"] == "dense"]
  wanted = [decided.get("train_flops")]
  if decided.get("dense_tokens"):
    wanted = [decided["dense_tokens"] * flops for flops in dense]
  if compared and wanted[:1] != [None] and wanted:
    near = any(math.isclose(budget["train_flops"], flops, rel_tol=1e-9) for flops in wanted)
    yield line("budget: train_flops", wanted[0], budget["train_flops"], near,
               "the config in study.json and the dense arm's FLOPs a token")  # fmt: skip
  if compared and "equal_data" in budget and "flops_tolerance" in budget:
    unique = [arm["num_unique_tokens"] for arm in compared]
    equal = max(unique) - min(unique) <= budget["flops_tolerance"] * budget["num_unique_tokens"]
    yield line("budget: equal_data", equal, budget["equal_data"], equal == budget["equal_data"],
               "unique tokens of the arms in plan.json")  # fmt: skip


def _undecided(spec: dict, arm: dict) -> str:
  """What an arm's plan has otherwise than its config and its other numbers decide; "" for nothing.

  Args:
    spec: of the arm in the config; {} where that does not have it.
  """
  multiple, role = spec.get("compute_multiple", 1.0), spec.get("role") or "arm"
  if not spec.get("tunes") and multiple != 1:
    role = "reference"
  elif not spec.get("tunes") and (spec.get("active_of") or spec.get("params_multiple", 1.0) != 1):
    role = "control"
  problems = []
  numbers = {"epochs": (arm["num_tokens"] / arm["num_unique_tokens"], 1e-9 * arm["epochs"])}
  if spec:
    wanted = {"kind": spec.get("kind"), "role": role, "tunes": spec.get("tunes", "")}
    problems += configs.differences(wanted, {name: arm.get(name, "") for name in wanted})
    numbers["compute_multiple"] = (multiple, 1e-9)
  if rate := spec.get("peak_learning_rate"):
    numbers["peak_learning_rate"] = (rate * spec.get("learning_rate_multiplier", 1.0), 1e-9 * rate)
  if rate := spec.get("activation_rate"):
    numbers["activation_rate"] = (rate, 2 * RATE_TOLERANCE)  # conventions differ by a little
  for name, (number, off) in numbers.items():
    if abs(arm[name] - number) > off:
      problems.append(f"{name}: {number:g} -> {arm[name]:g}")
  return "; ".join(problems)
