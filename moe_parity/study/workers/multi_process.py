"""Several processes as one worker of a study: the first chooses runs, the others train along.

The first process is the worker that leases, certifies and writes; before it trains a run it tells
the others which, as JSON. An error that every process meets (a loss that is no number) fails the
run and the study continues; an error of one process alone ends them all, and the same command
resumes from there.
"""

import contextlib
import dataclasses
import json
import pathlib

import jax
from ml_collections import ConfigDict

from moe_parity import config as configs
from moe_parity.data.token_store import TokenStore
from moe_parity.errors import UserError
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.finetuning_plan import FinetuningPlan
from moe_parity.sharding import multihost
from moe_parity.study.finetuning import train_run
from moe_parity.study.workers.bucket_study import scratch_folder
from moe_parity.study.workers.runner import RunActions
from moe_parity.training.control import BucketCheckpoints, RunControl, StopRequests


def broadcasting_actions(actions: RunActions) -> RunActions:
  """`actions` whose training the other processes join; itself where there are none."""
  if jax.process_count() == 1:
    return actions

  def train(config, arm, store, folder, on_log, log, control):
    try:
      multihost.broadcast_bytes(to_message(config, arm, folder, control.bucket))
      return actions.train(config, arm, store, folder, on_log, log, control)
    except Exception as error:
      control.stop.wait_for_lost_process(error)
      raise

  return dataclasses.replace(actions, train=train)


def run_follower(store: TokenStore, stop: StopRequests) -> None:
  """Trains what the first process trains, until it says that there is no more."""
  while (message := multihost.broadcast_bytes(None)) is not None:
    config, arm, folder, bucket = from_message(message)
    control = RunControl(stop=stop, bucket=bucket)
    with contextlib.ExitStack() as exit_stack:
      if bucket is not None:
        folder = pathlib.Path(exit_stack.enter_context(scratch_folder()))
      with contextlib.suppress(UserError):  # the first process met it too and writes it down
        train_run(config, arm, store, folder, control=control)


def stop_followers() -> None:
  """Lets the other processes end."""
  if jax.process_count() > 1:
    multihost.broadcast_bytes(None)


def to_message(
  config: ConfigDict, arm: ArmPlan, folder: pathlib.Path, bucket: BucketCheckpoints | None
) -> bytes:
  """What the first process sends the others about a run."""
  run = {"config": configs.to_json(config), "arm": arm.to_dict(), "folder": str(folder)}
  if bucket is not None:
    run["bucket"] = {"write": bucket.write, "read": bucket.read, "step": bucket.step}
  return json.dumps(run).encode()


def from_message(
  message: bytes,
) -> tuple[ConfigDict, ArmPlan, pathlib.Path, BucketCheckpoints | None]:
  """The inverse of `to_message`; tuples of the config are lists, as in config.json."""
  run = json.loads(message)
  bucket = BucketCheckpoints(**run["bucket"]) if "bucket" in run else None
  architecture = Architecture.from_dict(run["arm"].pop("architecture"))
  kind = FinetuningPlan if "finetuning" in run["arm"] else ArmPlan
  arm = kind(architecture=architecture, **run["arm"])
  return ConfigDict(run["config"]).lock(), arm, pathlib.Path(run["folder"]), bucket
