"""Sets up one arm for training: data, state, compiled step, checkpoints and telemetry."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe_parity.data.ledger import Ledger
from moe_parity.data.loader import Loader, prefetch
from moe_parity.data.token_store import TokenStore
from moe_parity.evaluation import bits_per_character
from moe_parity.evaluation.document_parts import COMPARISON, TRIES, part_of
from moe_parity.evaluation.model_scorer import make_scorer
from moe_parity.kernels.common import attention_device
from moe_parity.model.documents import document_separators
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.attention_choice import AttentionChoice
from moe_parity.sharding import multihost
from moe_parity.sharding.mesh import put_batch
from moe_parity.training import run_folder
from moe_parity.training.build import model_options, optimizer_options
from moe_parity.training.checkpoint import Checkpoints
from moe_parity.training.checkpoint_hashes import run_identity
from moe_parity.training.control import RunControl
from moe_parity.training.peak_flops import measure_peak_flops
from moe_parity.training.power import PowerMeter, power_meter
from moe_parity.training.sharded_checkpoints import ShardedCheckpoints
from moe_parity.training.stage import TrainingStage
from moe_parity.training.state import (
  TrainState,
  abstract_state,
  checkpoint_state,
  from_checkpoint,
  to_checkpoint,
)
from moe_parity.training.step import StepOptions, TrainStep, make_train_step
from moe_parity.training.telemetry import NullTelemetry, Telemetry
from moe_parity.training.timer import TrainingTimer


@dataclasses.dataclass(frozen=True)
class ArmRun:
  """One arm ready to train in this process: everything but the state, which every step replaces.

  Attributes:
    first_step: finished steps of the checkpoint that it resumes from, 0 for a fresh run.
    train_step: compiled; (state, inputs, targets) -> (state, scalars).
    stage: what it trains on and from, and what it adds to the result.
    make_scorer: (params, buffers) -> the model as `bits_per_character.evaluate` takes it.
    checkpoint_layout: the abstract state as checkpoints store it.
  """

  config: ConfigDict
  plan: ArmPlan
  store: TokenStore
  stage: TrainingStage
  folder: pathlib.Path
  mesh: Mesh | None
  first_step: int
  loader: Loader
  ledger: Ledger
  train_step: Callable
  compile_seconds: float
  make_scorer: Callable
  checkpoints: Checkpoints | ShardedCheckpoints
  checkpoint_layout: TrainState
  telemetry: Telemetry | NullTelemetry
  timer: TrainingTimer
  power: PowerMeter
  control: RunControl

  def batches(self) -> Iterator[dict]:
    """The batches of all steps after `first_step`, read ahead and already on their devices."""
    rows = itertools.islice(iter(self.loader), self.plan.num_steps - self.first_step)
    return prefetch(rows, functools.partial(to_device, mesh=self.mesh))

  def validate(self, state: TrainState, mode: str, max_tokens: int) -> dict:
    """Scores held-out text; see `bits_per_character.evaluate`."""
    return self.score(self.make_scorer(state.params, state.buffers), mode, max_tokens)

  def score(self, score: bits_per_character.Score, mode: str, max_tokens: int) -> dict:
    """`validate` with any scoring function; states which part of the documents it used, if not
    all (`evaluation/document_parts.py`)."""
    evaluation, is_try = self.config.evaluation, bool(self.plan.tunes)
    among, part = None, {}
    if evaluation.tuning_share and mode != "packed":
      documents = self.store.validation.documents
      among = part_of(documents, evaluation.tuning_share, self.config.data.seed, is_try)
      part = {"part": TRIES if is_try else COMPARISON}
    return part | bits_per_character.evaluate(
      score,
      self.store.validation,
      mode=mode,
      seq_len=self.plan.seq_len,
      stride=evaluation.stride if mode == "strided" else 0,
      max_tokens=max_tokens,
      batch_sequences=evaluation.batch_sequences,
      seed=self.config.data.seed,
      among=among,
    )

  def write_line(self, line: dict) -> None:
    """Appends a line to metrics.jsonl, if the run is still this worker's."""
    self.control.check_owner()
    self.telemetry.write(line)

  def save_checkpoint(self, step: int, state: TrainState) -> None:
    """Starts writing the state after `step`, with the ledger and the logs up to it."""
    self.control.check_owner()
    logs = self.telemetry.snapshot()
    self.ledger.collect(multihost.all_gather)
    stored = to_checkpoint(state, self.checkpoint_layout)
    self.checkpoints.save(step, stored, self.ledger.state(), logs)


def set_up(
  config: ConfigDict,
  plan: ArmPlan,
  store: TokenStore,
  stage: TrainingStage,
  folder: pathlib.Path,
  options: StepOptions,
  mesh: Mesh | None,
  warn: Callable[[str], None],
  control: RunControl,
  exit_stack: contextlib.ExitStack,
) -> tuple[ArmRun, TrainState]:
  """Everything that a claimed run folder needs before its next step, and the state to start from.

  Args:
    stage: rows and initial state.
    warn: called, in the first process, with a line about each damaged checkpoint passed over, and
      with one about attention where it is fused or could have been.
    exit_stack: closes the checkpoints and the telemetry.
  Raises:
    UserError: the data cannot feed the plan, no checkpoint of the folder can be read, or the
      attention that the config names cannot run here.
  """
  model, optimizer = model_options(config), optimizer_options(config, plan)
  if multihost.is_primary():
    _announce_attention(config, plan, warn)
  # Refuses a budget larger than the corpus, before compiling.
  ledger = Ledger.for_loader(stage.make_loader(0))
  layout = checkpoint_state(plan.architecture, model, optimizer, mesh)
  checkpoints = _checkpoints(folder, config.train.keep_checkpoints, control)
  exit_stack.callback(checkpoints.close)
  first_step, state, logs = _restored_or_new(
    checkpoints, ledger, layout, plan, (model, optimizer), mesh, warn, stage
  )
  train_step, compile_seconds = _compile(
    make_train_step(plan.architecture, model, optimizer, options, mesh), state, plan
  )
  control.check_owner()
  telemetry = _telemetry(folder, first_step, logs, lambda line: warn(f"{plan.name}: {line}"))
  exit_stack.callback(telemetry.close)
  return ArmRun(
    control=control,
    config=config,
    plan=plan,
    store=store,
    stage=stage,
    folder=folder,
    mesh=mesh,
    first_step=first_step,
    loader=stage.make_loader(first_step * plan.batch_sequences),
    ledger=ledger,
    train_step=train_step,
    compile_seconds=compile_seconds,
    make_scorer=make_scorer(plan.architecture, model, _text_separators(config, store), mesh),
    checkpoints=checkpoints,
    checkpoint_layout=layout,
    telemetry=telemetry,
    power=power_meter(jax.default_backend(), 1 if mesh is None else mesh.size, jax.process_count()),
    timer=_timer(config, plan, mesh, first_step, telemetry.seconds_before),
  ), state


def _telemetry(
  folder: pathlib.Path, first_step: int, logs: dict | None, warn: Callable[[str], None]
) -> Telemetry | NullTelemetry:
  """The logs of a run, which its first process writes."""
  if not multihost.is_primary():
    return NullTelemetry()
  return Telemetry(folder, from_step=first_step, logs=logs, warn=warn)


def _announce_attention(config: ConfigDict, plan: ArmPlan, warn: Callable[[str], None]) -> None:
  attention = choose_run_attention(config, plan)
  if attention.reason or attention.implementation != "blocks":
    warn(f"{plan.name}: attention by {attention.implementation}" + _because(attention.reason))


def _restored_or_new(
  checkpoints: Checkpoints | ShardedCheckpoints,
  ledger: Ledger,
  layout: TrainState,
  plan: ArmPlan,
  options,
  mesh: Mesh | None,
  warn: Callable[[str], None],
  stage: TrainingStage,
) -> tuple[int, TrainState, dict[str, bytes]]:
  """The newest checkpoint's step, state and logs, its ledger put into `ledger`; else 0 and a new
  state.

  Args:
    options: of the model and of the optimizer.
  """
  restored = checkpoints.restore(layout, ledger.state())
  if not restored:
    return 0, stage.initial_state(*options, mesh), {}
  for warning in restored.warnings if multihost.is_primary() else ():
    warn(f"{plan.name}: {warning}; resuming from step {restored.step}")
  ledger.restore(restored.ledger)
  placed = abstract_state(plan.architecture, *options, mesh)
  return restored.step, from_checkpoint(restored.state, placed), restored.logs


def _checkpoints(
  folder: pathlib.Path, keep: int, control: RunControl
) -> Checkpoints | ShardedCheckpoints:
  run, check_owner = _identity(folder), control.check_owner
  if control.bucket is not None:
    return ShardedCheckpoints(control.bucket, keep, check_owner)
  return Checkpoints(folder / "checkpoints", keep, run=run, check_owner=check_owner)


def _identity(folder: pathlib.Path) -> str:
  """Of the run in the folder; as the first process reads it, which has written its plan."""
  identity = None
  if multihost.is_primary():
    identity = run_identity(run_folder.read_json(folder / run_folder.PLAN)).encode()
  return multihost.broadcast_bytes(identity).decode()


def choose_run_attention(config: ConfigDict, plan: ArmPlan) -> AttentionChoice:
  """The implementation of attention of a run on this machine's devices; refuses before anything
  compiles."""
  choose = model_options(config).attention_choice
  return choose(attention_device(), plan.seq_len, plan.architecture.d_head)


def _because(reason: str) -> str:
  return f" ({reason})" if reason else ""


def _text_separators(config: ConfigDict, store: TokenStore):
  return document_separators(store.tokenizer, config.data.cross_documents)


def _timer(config, plan, mesh, first_step: int, seconds_before: float) -> TrainingTimer:
  return TrainingTimer(
    plan.batch_sequences * plan.seq_len,
    plan.train_flops_per_token,
    measure_peak_flops(config.model.dtype) * (1 if mesh is None else mesh.size),
    first_step=first_step,
    seconds_before=seconds_before,
  )


def _compile(train_step: TrainStep, state: TrainState, plan: ArmPlan) -> tuple[Callable, float]:
  """The compiled step, and the seconds that compiling took."""
  start = time.perf_counter()
  tokens = jax.ShapeDtypeStruct((plan.batch_sequences, plan.seq_len), np.int32)
  compiled = train_step.compile(state, tokens, tokens)
  return compiled, time.perf_counter() - start


def to_device(batch: dict[str, np.ndarray], mesh: Mesh | None) -> dict:
  """Starts moving what a step reads to its devices; `window` stays on the host for the ledger."""
  return batch | {name: put_batch(batch[name], mesh) for name in ("inputs", "targets")}
