"""Trains one arm into its run folder; a run that was interrupted resumes where it stopped."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from moe_parity import config as configs
from moe_parity import files
from moe_parity.data.token_store import TokenStore
from moe_parity.errors import NotFiniteError, Stopped
from moe_parity.evaluation import specialization
from moe_parity.evaluation.ablations import ablated_scores, probe_layers
from moe_parity.evaluation.routing_counts import count_routing, make_routing_counter
from moe_parity.evaluation.split_rows import check_run_rows
from moe_parity.model.documents import document_separators
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.sharding import multihost
from moe_parity.training import run_folder
from moe_parity.training.build import config_of_arm, make_run_mesh, model_options, step_options
from moe_parity.training.control import RunControl
from moe_parity.training.machine import machine
from moe_parity.training.metrics import (
  final_cross_entropy,
  steady_step_seconds,
  train_line,
  validation_line,
)
from moe_parity.training.out_of_memory import explained
from moe_parity.training.save_clock import SaveClock
from moe_parity.training.setup import ArmRun, choose_run_attention, set_up
from moe_parity.training.stage import TrainingStage, pretraining
from moe_parity.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a progress bar shows: `step` of `num_steps`, and that step's line of metrics.jsonl."""

  step: int
  num_steps: int
  line: dict


def train_arm(
  config: ConfigDict,
  plan: ArmPlan,
  store: TokenStore,
  folder: pathlib.Path,
  report: Callable[[Progress], None] = lambda progress: None,
  warn: Callable[[str], None] = print,
  control: RunControl | None = None,
  stage: TrainingStage | None = None,
) -> dict | None:
  """Trains, evaluates and returns what result.json holds. A finished run returns at once.

  Args:
    plan: the arm: shape, tokens, steps, rates; its seed decides the initial weights.
    store: tokens of the training and validation splits.
    folder: the run folder; made if it does not exist, continued if it holds this very run.
    report: called for every logged step, in the first of several processes.
    warn: called there with a line about each damaged checkpoint that was passed over.
    control: whether the run may write and must stop.
    stage: rows, initial state and further results; None pretrains on the store's text.
  Raises:
    UserError: the folder holds another run; the data cannot feed the plan; a device has too little
      memory (`OutOfMemoryError`).
    NotFiniteError: the loss, also that of held-out text, or the gradient became NaN or infinite;
      checkpoints of earlier steps stay.
    Stopped: `control` asked for it; a checkpoint of the last step taken is on disk.
  """
  config = config_of_arm(config, plan)
  stage = stage or pretraining(config, plan, store)
  options = step_options(config, plan, stage.documents)
  check_run_rows(config, plan, store.validation)
  mesh = make_run_mesh(config, plan)
  control = control or RunControl()
  control.check_owner()
  identity = configs.to_json(config), plan.to_dict(), store.fingerprint()
  num_devices = 1 if mesh is None else mesh.size
  run_folder.claim(folder, *identity, num_devices=num_devices, write=multihost.is_primary())
  if (result := run_folder.read_result(folder)) is not None:
    return result
  with explained(config, plan, num_devices), contextlib.ExitStack() as exit_stack:
    run, state = set_up(
      config, plan, store, stage, folder, options, mesh, warn, control, exit_stack
    )
    with control.stop.stepping():
      state = train(run, state, report)
    return finish(run, state)


def train(run: ArmRun, state: TrainState, report: Callable[[Progress], None]) -> TrainState:
  """Takes the steps that are left and returns the state after the last.

  Raises:
    Stopped: `run.control` asked for it; a checkpoint of this step is on disk.
  """
  every, last = run.config.train, run.plan.num_steps
  batches, pending, save_clock = run.batches(), None, SaveClock(every.save_minutes)
  for step in range(run.first_step + 1, last + 1):
    batch = next(batches)
    run.ledger.update(batch["window"])  # refuses a window over the budget before it is trained on
    state, scalars = run.train_step(state, batch["inputs"], batch["targets"])  # does not wait
    if pending is not None:
      log_step(run, step - 1, pending, report)  # the step before, while this one runs
    pending = scalars
    is_stopping = run.control.stop.should_stop()
    is_saving, is_evaluating = (is_due(step, n, last) for n in (every.save_every, every.eval_every))
    is_saving |= is_stopping | save_clock.is_due(step)
    # Both need this step's own loss to be finite; and a user waits for the first line.
    if is_saving or is_evaluating or step == run.first_step + 1:
      log_step(run, step, pending, report)
      pending = None
      with run.timer.paused(), run.control.stop.pausing():
        if is_evaluating and step < last:
          validation = run.validate(state, "packed", every.eval_tokens)
          run.write_line(validation_line(step, run.timer, validation))
        if is_saving:
          run.save_checkpoint(step, state)
          save_clock.saved()
        if is_stopping:
          run.checkpoints.wait()
          raise Stopped(f"stopped with a checkpoint of step {step} of {last}")
  return state


def log_step(run: ArmRun, step: int, scalars: dict, report: Callable[[Progress], None]) -> None:
  """Writes a finished step's line if one is due; waits for its scalars.

  The first step after a resume is reported, so that a user sees the run go, and logged if due.

  Raises:
    NotFiniteError: the step's loss or gradient is NaN or infinite. Where the gradient alone is, as
      in a last step, the weights are no numbers either, and no checkpoint of them may stay.
  """
  scalars = jax.device_get(scalars)
  run.power.update()
  for name, words in (("loss", "loss"), ("gradient_norm", "gradient norm")):
    if not np.isfinite(scalars[name]):
      raise _not_finite(run, step, f"the {words} of step {step} is {float(scalars[name])}")
  is_logged = step == 1 or is_due(step, run.config.train.log_every, run.plan.num_steps)
  if is_logged or step == run.first_step + 1:
    line = train_line(step, scalars, run.timer)
    if is_logged:  # the same steps whether the run was interrupted or not
      run.write_line(line)
      if "load_LE" in scalars:
        run.telemetry.write_routing(step, line["num_tokens"], scalars["load_LE"])
    if multihost.is_primary():
      report(Progress(step, run.plan.num_steps, line))


def _not_finite(run: ArmRun, step: int, what: str) -> NotFiniteError:
  run.checkpoints.wait()
  last_checkpoint = next(iter(run.checkpoints.steps()), None)
  remains = (
    f"the checkpoint of step {last_checkpoint} remains in"
    if last_checkpoint
    else "there is no checkpoint yet in"
  )
  return NotFiniteError(
    f"arm {run.plan.name!r}: {what}; {remains}"
    f" {run.checkpoints.folder}; lower --config.arms.{run.plan.name}.learning_rate_multiplier"
  )


def finish(run: ArmRun, state: TrainState) -> dict | None:
  """Scores the trained model, counts its routing, and writes result.json, the run's last file."""
  run.checkpoints.wait()
  evaluation, plan = run.config.evaluation, run.plan
  num_devices = 1 if run.mesh is None else run.mesh.size
  validation = run.validate(state, evaluation.mode, evaluation.max_tokens)
  counts = None
  is_looked_into = plan.architecture.is_moe and not plan.tunes  # a try needs its score alone
  if is_looked_into and evaluation.routing_tokens:
    counter = make_routing_counter(plan.architecture, model_options(run.config), run.mesh)
    counts = count_routing(
      counter(state.params, state.buffers),
      run.store.validation,
      plan.architecture,
      seq_len=plan.seq_len,
      batch_sequences=evaluation.batch_sequences,
      max_tokens=evaluation.routing_tokens,
      seed=run.config.data.seed,
    )
  taken_apart = {}
  if is_looked_into:
    taken_apart = take_apart(run, state)
  further = run.stage.further_results(run, state)
  if not multihost.is_primary():
    multihost.barrier(f"{plan.name}: finished")  # the first process writes the result meanwhile
    return run_folder.read_result(run.folder)
  run.control.check_owner()
  run.telemetry.close()  # all events are on disk before the run counts as finished
  if counts is not None:
    specialization.save(counts, run.folder)
  run.ledger.save(run.folder / "ledger.npz")
  result = {
    "name": plan.name,
    "kind": plan.kind,
    "role": plan.role,
    "seed": plan.seed,
    "finished_step": plan.num_steps,
    "seconds": run.timer.seconds,
    "compile_seconds": run.compile_seconds,
    "step_seconds": steady_step_seconds(run.folder, plan.batch_sequences * plan.seq_len),
    "machine": machine(num_devices),
    "power": run.power.result(run.config.train.device_watts, num_devices),
    "attention": choose_run_attention(run.config, plan).implementation,
    "train_cross_entropy": final_cross_entropy(run.folder, plan.num_steps),
    "validation": validation,
    **taken_apart,
    **further,
  }
  run.control.check_owner()
  files.write_json(run.folder / run_folder.RESULT, result, seal=True)
  multihost.barrier(f"{plan.name}: finished")
  return result


def take_apart(run: ArmRun, state: TrainState) -> dict:
  """`ablations` and `layers` of an MoE arm's result.json: see `evaluation/ablations.py`.

  Ablated models are scored on the documents of the validation, whose order their nats have, so that
  scores compare one by one.
  """
  evaluation, plan, model = run.config.evaluation, run.plan, model_options(run.config)
  trained = run.mesh, state.params, state.buffers
  documents = document_separators(run.store.tokenizer, run.config.data.cross_documents)
  scores = {}
  names = tuple(evaluation.ablations)
  for name, score in ablated_scores(names, plan.architecture, model, documents, *trained):
    value = run.score(score, evaluation.mode, evaluation.max_tokens)
    scores[name] = {field: value[field] for field in ("bpc", "bpb", "cross_entropy")}
    scores[name]["nats"] = [document["nats"] for document in value["documents"]]
  rows = run.store.validation, plan.seq_len, evaluation.batch_sequences
  return {
    "ablations": scores,
    "layers": probe_layers(plan.architecture, model, *trained, *rows),
  }


def is_due(step: int, every: int, last: int) -> bool:
  """Whether something done every `every` steps (0: only after the last) is done after `step`."""
  return step == last or (every > 0 and step % every == 0)
