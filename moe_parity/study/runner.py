"""Runs every arm of a study into its folder; goes on where it stopped.

Arms run one after another in this process. An arm that fails is recorded with its error and the
others go on; running the study again tries it again. Arms that are done are not touched.
"""

import dataclasses
import datetime
import importlib.metadata
import pathlib
import platform
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from moe_parity import config as configs
from moe_parity.data.token_store import TokenStore
from moe_parity.errors import UserError
from moe_parity.resources.plan import ArmPlan, Plan
from moe_parity.study import certificate
from moe_parity.training import run_folder
from moe_parity.training.loop import Progress, train_arm

STUDY, PLAN = "study.json", "plan.json"
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "moe_parity")


@dataclasses.dataclass
class Arm:
  """One run of a study: status is pending, running, done or failed."""

  name: str
  seed: int
  folder: str
  status: str = "pending"
  error: str = ""


def folder_of(plan: ArmPlan) -> str:
  """Run folder of an arm inside its study."""
  return f"runs/{plan.name}-s{plan.seed}"


def open_study(
  config: ConfigDict, plan: Plan, store: TokenStore, folder: pathlib.Path, command: str
) -> list[Arm]:
  """Makes or reopens the study folder and returns its arms with their state.

  Raises:
    UserError: the folder holds a study with another plan; lists what differs.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if (folder / PLAN).exists():
    changed = configs.differences(run_folder.read_json(folder / PLAN), plan.to_dict())
    if changed:
      more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
      raise UserError(
        f"{folder} holds another study ({'; '.join(changed[:3])}{more}); use another --workdir, or"
        " remove this one"
      )
  elif any(folder.iterdir()):
    raise UserError(f"{folder} is not empty and holds no study; use another --workdir")
  run_folder.write_json(folder / PLAN, plan.to_dict())
  arms = []
  for arm in plan.arms:
    done = (folder / folder_of(arm) / run_folder.RESULT).exists()
    arms.append(Arm(arm.name, arm.seed, folder_of(arm), "done" if done else "pending"))
  write_study(config, store, folder, arms, command)
  return arms


def write_study(config, store, folder: pathlib.Path, arms: Sequence[Arm], command: str) -> None:
  """study.json: what was run on what, with which versions, and how far it is."""
  path = folder / STUDY
  created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  if path.exists():
    created = run_folder.read_json(path).get("created", created)
  run_folder.write_json(
    path,
    {
      "name": config.name,
      "created": created,
      "command": command,
      "config": configs.to_json(config),
      "data": {
        "tokenizer": store.manifest["tokenizer"],
        "train_sha256": store.train.fingerprint,
        "validation_sha256": store.validation.fingerprint,
      },
      "versions": {name: importlib.metadata.version(name) for name in VERSIONS}
      | {"python": platform.python_version()},
      "arms": [dataclasses.asdict(arm) for arm in arms],
    },
  )


def select(arms: Sequence[ArmPlan], only: Sequence[str]) -> list[ArmPlan]:
  """The arms named in `only` (all of them if it is empty).

  Raises:
    UserError: a name that is no arm.
  """
  names = [arm.name for arm in arms]
  for name in only:
    if name not in names:
      raise UserError(f"--only={name}: the plan's arms are {', '.join(dict.fromkeys(names))}")
  return [arm for arm in arms if not only or arm.name in only]


def run_study(
  config: ConfigDict,
  plan: Plan,
  store: TokenStore,
  folder: pathlib.Path,
  *,
  only: Sequence[str] = (),
  command: str = "",
  report: Callable[[ArmPlan, Progress], None] = lambda arm, progress: None,
  warn: Callable[[str], None] = print,
) -> list[Arm]:
  """Trains what is left of the study, then certifies each finished run and the whole.

  Returns:
    every arm of the study with its status; a failed one holds its error.
  """
  arms = {(arm.name, arm.seed): arm for arm in open_study(config, plan, store, folder, command)}
  for arm_plan in select(plan.arms, only):
    arm = arms[arm_plan.name, arm_plan.seed]
    run = folder / arm.folder
    if arm.status != "done":
      arm.status = "running"
      write_study(config, store, folder, list(arms.values()), command)
      try:
        train_arm(config, arm_plan, store, run, lambda p, a=arm_plan: report(a, p), warn)
        arm.status = "done"
      except UserError as error:
        arm.status, arm.error = "failed", str(error)
        warn(f"{arm.name} (seed {arm.seed}) failed: {error}")
      write_study(config, store, folder, list(arms.values()), command)
    if arm.status == "done":
      certificate.certify_run(run)
  certificate.certify_study(folder)
  return list(arms.values())
