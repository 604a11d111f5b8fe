"""Reads run and study folders: all that analysis and report know, they know from here.

A study that is half done is the normal case: every planned run gets a `RunRecord`, finished or not,
and what is damaged is named in `StudyRecord.problems` instead of being passed over.
"""

import dataclasses
import pathlib
import re

import numpy as np

from moe_parity import files
from moe_parity.data.checked_npz import read_arrays
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import budget_of
from moe_parity.stored import read as stored
from moe_parity.stored.run_files import METRICS_LINE
from moe_parity.stored.shape import mismatch
from moe_parity.stored.study_files import NOT_FINITE, STATUSES

# Where a study keeps its further comparisons, each a study folder; the name on disk is one that all
# folders written so far have, so that they load and resume.
COMPARISONS_FOLDER = "parts"
FINETUNING_PREFIX = "sft_"  # of the comparisons that hold fine-tuned runs
STEPS = ("architecture", "activation_rate", "data_reuse")  # of the paper
# Of the error of a run that diverged, in a study.json without `failure`.
_FORMER_WORDS = re.compile(r"the (loss|gradient norm) of step \d+ is -?(nan|inf)")
_AGAIN = "run the study again to write it"
_WAYS_OUT = {
  "result.json": f"{stored.WAY_OUT}, or remove it and run the study again: the run is scored again"
  " from its checkpoint"
}


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """One arm with one seed. `status` is one of STATUSES; "done" means that result.json is there.

  Attributes:
    failure: kind of a failed run's error, as its lease has it; "" in studies of earlier versions.
  """

  name: str
  seed: int
  status: str
  error: str
  folder: pathlib.Path
  plan: dict
  result: dict
  certificate: dict
  failure: str = ""

  @property
  def label(self) -> str:
    return f"{self.name} (seed {self.seed})"

  @property
  def done(self) -> bool:
    return self.status == "done"

  @property
  def diverged(self) -> bool:
    """Whether it failed because its loss or gradient was not finite."""
    if self.failure or self.status != "failed":
      return self.status == "failed" and self.failure == NOT_FINITE
    return bool(_FORMER_WORDS.search(self.error))


@dataclasses.dataclass(frozen=True)
class StudyRecord:
  """A folder of runs. `info` is study.json, `plan` plan.json; {} where a file is not there yet."""

  folder: pathlib.Path
  name: str
  info: dict
  plan: dict
  certificate: dict
  runs: tuple[RunRecord, ...]
  problems: tuple[str, ...]


def read_study(folder: str | pathlib.Path) -> StudyRecord:
  """Reads a study folder, or one run folder as a study of one run.

  study.json says which runs there are and what became of them; plan.json adds planned runs that
  study.json does not list yet, as pending. result.json outranks study.json: a run with one is done.

  Raises:
    UserError: the folder is missing or holds neither study.json nor plan.json.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UserError(f"study folder {str(folder)!r} is not a folder; give the folder of a study")
  problems: list[str] = []
  info, plan = (_own_json(folder / name, problems) for name in ("study.json", "plan.json"))
  if "budget" in plan:
    plan["budget"] = budget_of(plan)
  if not info and not plan:
    raise UserError(
      f"{str(folder)!r} holds neither study.json nor plan.json; a study or run folder has one"
    )
  if not info and "arms" not in plan:
    run = _read_run(folder, plan.get("name", folder.name), int(plan.get("seed", 0)), {}, problems)
    return StudyRecord(
      folder, run.name, {}, {"arms": [plan]}, run.certificate, (run,), tuple(problems)
    )
  if not info and (folder / "runs").is_dir() and not problems:
    problems.append("study.json is not there; run the study again to write it")
  runs = []
  listed = {}
  for arm in info.get("arms", []):
    listed[arm["name"], int(arm["seed"])] = arm
  for arm in plan.get("arms", []):
    entry = {"status": "pending", "folder": f"runs/{arm['name']}-s{arm['seed']}", "error": ""}
    listed.setdefault((arm["name"], int(arm["seed"])), entry)
  planned = {(arm["name"], int(arm["seed"])): arm for arm in plan.get("arms", [])}
  for (name, seed), entry in listed.items():
    path = run_place(folder, entry.get("folder") or f"runs/{name}-s{seed}")
    runs.append(_read_run(path, name, seed, entry, problems, planned.get((name, seed), {})))
  name = info.get("name") or folder.resolve().name
  certificate = _read_json(folder / "certificate.json", problems)
  return StudyRecord(folder, name, info, plan, certificate, tuple(runs), tuple(problems))


def run_place(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The run folder that a study.json or plan.json names, inside the study that `folder` is of.

  A comparison below parts/ may share runs of the study and of its other comparisons.

  Raises:
    UserError: the name is absolute, or leads out of the study, by `..` or by a link.
  """
  root = folder.resolve()
  if root.parent.name == COMPARISONS_FOLDER:
    root = root.parent.parent
  bad = not isinstance(name, str) or "\0" in name or "\\" in name
  if bad or not (folder / name).resolve().is_relative_to(root) or pathlib.Path(name).is_absolute():
    raise UserError(
      f"{folder} names the run folder {str(name)[:200]!r}, which is outside of the study; nothing"
      " of it is read or written: do not use files of this origin"
    )
  return folder / name


def check_inside(study_folder: pathlib.Path, path: pathlib.Path) -> None:
  """Call before something is written to a folder of a study that may be a stranger's.

  Raises:
    UserError: a link leads out of the study.
  """
  if not path.resolve().is_relative_to(study_folder.resolve()):
    raise UserError(
      f"{path} is a link that leads out of the study; nothing is written there: put a folder in its"
      " place"
    )


def comparison_folders(study_folder: pathlib.Path) -> list[pathlib.Path]:
  """Study folders of a study's further comparisons, sorted; [] if it has none.

  Those of fine-tuned runs are left out: their models are trained on something else.

  Raises:
    UserError: a link leads out of the study.
  """
  plans = sorted((study_folder / COMPARISONS_FOLDER).glob("*/plan.json"))
  for path in plans:  # a comparison's certificate and analysis are written into its folder
    check_inside(study_folder, path.parent)
  return sorted(path.parent for path in plans if not is_finetuning(path.parent.name))


def is_finetuning(comparison: str) -> bool:
  """Whether a comparison of this name holds fine-tuned runs."""
  return comparison.startswith(FINETUNING_PREFIX)


def compared(study: StudyRecord) -> StudyRecord:
  """The study without the tries of learning rates (`study/tuning.py`), which are not compared."""
  arms = [arm for arm in study.plan.get("arms", []) if not arm.get("tunes")]
  return dataclasses.replace(
    study,
    plan=study.plan | {"arms": arms},
    runs=tuple(run for run in study.runs if not run.plan.get("tunes")),
  )


def read_everything(folder: str | pathlib.Path) -> list[tuple[str, RunRecord]]:
  """(label, run) of a study or run folder and of the comparisons it has, each run once.

  A label holds the comparison: "unique/moe_20".
  """
  folder, by_path = pathlib.Path(folder), {}
  for comparison in [folder, *comparison_folders(folder)]:
    prefix = "" if comparison == folder else f"{comparison.name}/"
    for run in read_study(comparison).runs:
      by_path.setdefault(run.folder.resolve(), (prefix + run.label, run))
  return list(by_path.values())


def read_steps(study_folder: str | pathlib.Path) -> dict[str, dict]:
  """Step -> what <step>.json holds, for every one of STEPS; {} where a step was not run.

  Raises:
    UserError: a file that is not a JSON object.
  """
  by_name: dict[str, dict] = {}
  for step in STEPS:
    path = pathlib.Path(study_folder) / f"{step}.json"
    by_name[step] = {}
    if not path.is_file():
      continue
    by_name[step] = stored.read_json(path, _AGAIN)
  return by_name


def read_metrics(run_folder: pathlib.Path) -> tuple[list[dict], list[dict], str]:
  """metrics.jsonl as (train lines, validation lines, problem).

  A run that was killed and resumed may have logged a step twice: the later line stands. A torn
  last line is what a kill leaves and is dropped; any other unreadable line is counted in `problem`.
  """
  path = pathlib.Path(run_folder) / "metrics.jsonl"
  if not path.is_file():
    return [], [], "metrics.jsonl is not there"
  kept: dict[str, dict[int, dict]] = {"train": {}, "validation": {}}
  broken = 0
  lines = path.read_bytes().split(b"\n")  # a damaged line may be no text
  for number, line in enumerate(lines):
    if not line.strip():
      continue
    try:
      record = files.parse_json(line)
      is_line = not mismatch(record, METRICS_LINE)
    except ValueError:
      is_line = False
    if is_line:
      kept[record["kind"]][record["step"]] = record
    else:
      broken += number < len(lines) - 1
  problem = f"metrics.jsonl has {broken} unreadable lines" if broken else ""
  train, validation = (
    [kept[kind][step] for step in sorted(kept[kind])] for kind in ("train", "validation")
  )
  return train, validation, problem


def read_routing(run_folder: pathlib.Path) -> dict[str, np.ndarray]:
  """routing.npz: steps [R], num_tokens [R], loads [R, MoE layers, experts]; {} if there is none.

  Raises:
    UserError: it is damaged.
  """
  path = pathlib.Path(run_folder) / "routing.npz"
  if not path.is_file():
    return {}
  way_out = "restore it from the newest checkpoint's logs, or remove it to do without"
  routing = read_arrays(path, ("steps", "num_tokens", "loads"), way_out)
  return routing if routing["loads"].size else {}


def _read_run(
  folder: pathlib.Path,
  name: str,
  seed: int,
  entry: dict,
  problems: list[str],
  plan: dict | None = None,
) -> RunRecord:
  plan = _read_json(folder / "plan.json", problems) or plan or {}
  earlier = len(problems)
  result = _read_json(folder / "result.json", problems)
  status, error = entry.get("status") or "running", str(entry.get("error") or "")
  if result:
    status = "done"
  elif status == "done" or status not in STATUSES:
    status, error = "missing", "".join(problems[earlier:]) or error
  return RunRecord(
    name=name,
    seed=seed,
    status=status,
    error=error,
    folder=folder,
    plan=plan,
    result=result,
    certificate=_read_json(folder / "certificate.json", problems),
    failure=str(entry.get("failure") or ""),
  )


def _read_json(path: pathlib.Path, problems: list[str]) -> dict:
  if not path.is_file():
    return {}
  try:
    return stored.read_json(path, _WAYS_OUT.get(path.name, stored.WAY_OUT))
  except UserError as error:
    problems.append(str(error).removeprefix(f"{path.parent.parent}/"))
    return {}


def _own_json(path: pathlib.Path, problems: list[str]) -> dict:
  """study.json or plan.json of a study, {} where it is not there or no JSON.

  Raises:
    UserError: it has another shape.
  """
  value: dict = {}
  if path.is_file():
    try:
      value = files.read_json(path)
    except UserError as error:
      problems.append(str(error).removeprefix(f"{path.parent.parent}/"))
      return {}
    stored.check(value, stored.shape_of(path.name, value), path, _AGAIN)
  return value
