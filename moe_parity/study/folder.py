"""A study and its folder: its comparisons, the runs of each, and their states."""

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from moe_parity import config as configs
from moe_parity import files
from moe_parity.data.mixture import planner_inputs
from moe_parity.data.token_store import TokenStore
from moe_parity.errors import UserError, suggest
from moe_parity.finetuning.sweep import SWEEP as FINETUNING
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.study.comparisons import Comparison, Results, plan_comparisons, run_seen_from
from moe_parity.study.methods.method import method_of
from moe_parity.study.plan_growth import has_grown
from moe_parity.study.reading import is_finetuning
from moe_parity.study.workers.leases import FAILED, RUNNING, Leases
from moe_parity.training import run_folder
from moe_parity.training.control import BucketCheckpoints
from moe_parity.training.versions import versions

STUDY, PLAN, LEASES = "study.json", "plan.json", "leases"
OLD_LEASES = "claims"  # their folder in studies that were begun by early versions
# What may be there before the study: its leases, and what launchers bring: logs, code, programs.
NOT_THE_STUDY = (LEASES, OLD_LEASES, "logs", "launch")


class Task(NamedTuple):
  """A run of a study: `run` is its folder, relative to the study folder."""

  comparison: Comparison
  arm: ArmPlan
  run: str

  @property
  def label(self) -> str:
    """What a reader calls it: its comparison, its arm, and its seed where that is not the first."""
    comparison = f"{self.comparison.name}/" if self.comparison.name else ""
    return f"{comparison}{self.arm.name}" + (f" seed {self.arm.seed}" if self.arm.seed else "")


@dataclasses.dataclass
class Arm:
  """One run as study.json lists it: status is pending, running, done or failed; failure is the
  kind of a failed run's error, as its lease has it."""

  name: str
  seed: int
  folder: str
  status: str = "pending"
  error: str = ""
  failure: str = ""


def tasks_of(comparisons: Sequence[Comparison], only: Sequence[str] = ()) -> list[Task]:
  """Every run once, in the order of the comparisons; with `only`, those of the arms named. An arm's
  tries of learning rates are its own.

  Raises:
    UserError: a name that is no arm.
  """
  by_run: dict[str, Task] = {}
  for comparison in comparisons:
    for arm, run in zip(comparison.plan.arms, comparison.runs, strict=True):
      by_run.setdefault(run, Task(comparison, arm, run))
  named = {task.arm.name for task in by_run.values()}
  arms = list(dict.fromkeys(task.arm.tunes or task.arm.name for task in by_run.values()))
  for name in only:
    if name not in named and name not in arms:
      raise UserError(f"--only={name}: the plan's arms are {', '.join(arms)}")
  return [
    task for task in by_run.values() if not only or task.arm.name in only or task.arm.tunes in only
  ]


def select(arms: Sequence[ArmPlan], only: Sequence[str], option: str = "--only") -> list[ArmPlan]:
  """The arms named in `only` (all of them if it is empty).

  Args:
    option: of the command line, where the names were given.
  Raises:
    UserError: a name that is no arm.
  """
  names = [arm.name for arm in arms]
  for name in only:
    if name not in names:
      known = dict.fromkeys(names)
      raise UserError(
        f"{option}={name}: the plan's arms are {', '.join(known)}{suggest(name, known)}"
      )
  return [arm for arm in arms if not only or arm.name in only]


class StudyFolder:
  """A study and its folder, as one worker holds them."""

  def __init__(
    self,
    config: ConfigDict,
    store: TokenStore,
    folder: pathlib.Path,
    *,
    command: str = "",
    leases: str = "",
    worker: str = "",
    stale_seconds: int | float = 300,
  ):
    """Args:
    leases: where they are kept; "" is inside the study folder.
    worker: this worker's name, the same in all its lives; "" if it has none.
    """
    self.config, self.store, self.folder, self.command = config, store, folder, command
    # Another worker may be making the folder at this moment: first what is there, then the plan.
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    strange = [n for n in names if n not in NOT_THE_STUDY and not n.startswith(f"{PLAN}.")]
    if strange and not any((folder / name).exists() for name in (PLAN, STUDY)):
      raise UserError(f"{folder} is not empty and holds no study; use another --workdir")
    self.leases = Leases(
      leases or leases_folder(folder),
      worker=worker,
      stale_seconds=stale_seconds,
      heartbeat_seconds=min(20, stale_seconds / 4),
    )
    self.comparisons: list[Comparison] = []
    self._chat_rows = None

  @property
  def staged(self) -> bool:
    """Whether results decide what else is to be trained."""
    study = self.config.study
    return (
      study.method != "arms" or bool(study.learning_rate_grid) or bool(self.config.finetuning.data)
    )

  def derive(self, write: bool = True) -> list[Comparison]:
    """Plans all comparisons by what is known now, and writes what is new into the folder.

    Args:
      write: False only looks.
    Raises:
      UserError: the folder holds a study with another plan; lists what differs.
    """
    self._check_settings()
    inputs = planner_inputs(self.store, self.config)
    comparisons = plan_comparisons(self.config, Results(self.folder, self.leases), **inputs)
    if self.config.finetuning.data:
      from moe_parity.study.finetuning import finetuning_comparisons  # loads JAX

      rows = self._read_chats()  # whatever is wrong with them is said before any arm is trained
      comparisons += finetuning_comparisons(self.config, comparisons, self.folder, rows)
    for comparison in comparisons:
      path = self.folder / comparison.folder / PLAN
      grown = not path.exists() or has_grown(path, comparison.plan, self.staged)
      if grown and write:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, comparison.plan.to_dict(), seal=True)
    self.comparisons = comparisons
    return comparisons

  def _read_chats(self):
    """The study's chats as rows, read once."""
    from moe_parity.finetuning.finetune import chat_rows

    if self._chat_rows is None:
      self._chat_rows = chat_rows(self.config, self.store, self.config.budget.seq_len)
    return self._chat_rows

  def _check_settings(self) -> None:
    """
    Raises:
      UserError: the folder holds a study with other settings: arms trained with them would not be
        comparable with those that are there.
    """
    path = self.folder / STUDY
    if not path.exists():
      return
    stored = run_folder.read_json(path)
    old, new = stored["config"], configs.to_json(self.config)
    changed = configs.differences(run_folder.settings(old), run_folder.settings(new))
    if any(arm.get("status") == "done" for arm in stored.get("arms") or ()):
      changed += configs.differences(*map(_scoring, (old, new)), "evaluation.")
    if changed:
      more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
      raise UserError(
        f"{self.folder} holds a study with other settings ({'; '.join(changed[:3])}{more}), and its"
        " arms would not be comparable; use another --workdir, or set them back"
      )

  def status(self, run: str) -> tuple[str, str]:
    """(status, error) of a run by what its folder and its lease say."""
    return self._state(run)[:2]

  def _state(self, run: str) -> tuple[str, str, str]:
    """`status`, and the kind of a failed run's error."""
    if (self.folder / run / run_folder.RESULT).exists():
      return "done", "", ""
    record = self.leases.get(run)
    if record.get("state") == RUNNING and not self.leases.why_stale(run, record):
      return "running", "", ""
    if record.get("state") == FAILED:
      return "failed", record.get("error", ""), record.get("kind", "")
    return "pending", "", ""

  def finished(self, run: str) -> bool:
    """Whether a run has its result, read anew."""
    return (self.folder / run / run_folder.RESULT).exists()

  # Hooks of a study on a bucket (`bucket_study`); here a run's folder is the study's own.

  def has_checkpoint(self, run: str) -> bool:
    """Whether a finished run's last checkpoint is here, so that its certificate can be computed."""
    return True

  def fetch(self, run: str) -> None:
    """Restores what is stored of a run's folder, before it is trained."""

  def fetch_checkpoint(self, run: str) -> None:
    """Before a finished run is fine-tuned: brings its checkpoint here."""

  def upload_checkpoint(
    self, run: str, check: Callable[[], None], log: Callable[[str], None]
  ) -> None:
    """While it is trained: after every logged step."""

  def bucket_checkpoints(
    self, run: str, check: Callable[[], None], log: Callable[[str], None]
  ) -> BucketCheckpoints | None:
    """Where its checkpoints go, if not into its folder: for processes that share a bucket alone."""
    return None

  def fetch_last_checkpoint(self, run: str) -> None:
    """When all its steps are taken, before it is certified."""

  def upload_stopped(self, run: str, check: Callable[[], None], log: Callable[[str], None]) -> None:
    """When it was stopped between two steps, with a checkpoint."""

  def upload_run(self, run: str, check: Callable[[], None], log: Callable[[str], None]) -> None:
    """When it is finished and certified."""

  def upload_failure(self, run: str) -> None:
    """When it failed."""

  def publish(self) -> str:
    """When all is analyzed; returns where the page is."""
    return str(self.folder / "report" / "index.html")

  def write(self) -> list[Arm]:
    """study.json of every comparison: what was run on what, with which versions, how far it is.

    Returns:
      every run of the study once.
    """
    states = {task.run: self._state(task.run) for task in tasks_of(self.comparisons)}
    for comparison in self.comparisons:
      arms = [
        Arm(arm.name, arm.seed, run_seen_from(comparison, run), *states[run])
        for arm, run in zip(comparison.plan.arms, comparison.runs, strict=True)
      ]
      self._write_comparison(comparison, arms)
    return [
      Arm(task.arm.name, task.arm.seed, task.run, *states[task.run])
      for task in tasks_of(self.comparisons)
    ]

  def summarize(self) -> dict | None:
    """Writes what the method makes of its comparisons, `<method>.json`; None for plain arms."""
    method = method_of(self.config)
    if method is None:
      return None
    results = Results(self.folder, self.leases)
    pretrained = [c for c in self.comparisons if not is_finetuning(c.name)]
    value = method.summarize(self.config, self.folder, pretrained, results)
    files.write_json(self.folder / f"{self.config.study.method}.json", value, seal=True)
    return value

  def summarize_finetuning(self) -> dict | None:
    """Writes finetuning.json, what came of every arm on chats; None without that stage."""
    if not self.config.finetuning.data:
      return None
    from moe_parity.study.finetuning import summarize

    results = Results(self.folder, self.leases)
    value = summarize(self.config, self.comparisons, self.folder, results)
    files.write_json(self.folder / FINETUNING, value, seal=True)
    return value

  def _write_comparison(self, comparison: Comparison, arms: list[Arm]) -> None:
    path = self.folder / comparison.folder / STUDY
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if path.exists():
      created = run_folder.read_json(path).get("created", created)
    manifest, store = self.store.manifest, self.store
    files.write_json(
      path,
      {
        "name": f"{self.config.name}/{comparison.name}" if comparison.name else self.config.name,
        "created": created,
        "command": self.command,
        "config": configs.to_json(comparison.config),
        "data": {
          "tokenizer": manifest["tokenizer"],
          "train_sha256": store.train.fingerprint,
          "validation_sha256": store.validation.fingerprint,
          "text_lost": {split.name: split.lost for split in (store.train, store.validation)},
        },
        "versions": versions(),
        "arms": [dataclasses.asdict(arm) for arm in arms],
      },
      seal=True,
    )


def _scoring(config: dict) -> dict:
  """The fields of a config that decide which documents are scored, and how."""
  found = {name: config["evaluation"].get(name) for name in ("mode", "stride", "max_tokens")}
  return found | {"tuning_share": config["evaluation"].get("tuning_share", 0.0)}


def leases_folder(folder: pathlib.Path) -> pathlib.Path:
  """Where a study's leases are, unless its workers were given another place."""
  return folder / (OLD_LEASES if (folder / OLD_LEASES).is_dir() else LEASES)
