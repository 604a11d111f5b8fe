"""Trains one arm into its run folder; goes on where a killed run stopped."""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe_parity import config as configs
from moe_parity.data.ledger import Ledger
from moe_parity.data.loader import Loader, prefetch
from moe_parity.data.token_store import TokenStore
from moe_parity.errors import UserError
from moe_parity.evaluation import bits_per_character, specialisation
from moe_parity.evaluation.routing_counts import count_split, make_counter
from moe_parity.evaluation.score import make_scorer
from moe_parity.model.documents import documents_of
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.sharding import multihost
from moe_parity.sharding.mesh import on_devices
from moe_parity.training import run_folder
from moe_parity.training.checkpoint import Checkpoints
from moe_parity.training.program import (
  mesh_here,
  model_options,
  optimizer_options,
  step_options,
)
from moe_parity.training.state import (
  abstract_state,
  from_stored,
  init_state,
  stored_state,
  to_stored,
)
from moe_parity.training.step import make_train_step
from moe_parity.training.telemetry import (
  Clock,
  Silent,
  Telemetry,
  log_line,
  measured_peak,
  read_metrics,
  validation_line,
)


class NotFiniteError(UserError):
  """The loss of a step is not a number; the checkpoints before it are kept."""


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a progress bar shows: `step` of `num_steps`, and that step's logged line."""

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
) -> dict:
  """Trains, evaluates and returns what result.json holds. A finished run returns at once.

  Args:
    plan: the arm: shape, tokens, steps, rates; its seed decides the initial weights.
    store: tokens of the training and validation splits.
    folder: the run folder; made if it is not there, continued if it holds this very run.
    report: called for every logged step, in the first of several processes.
    warn: called there with a line about each damaged checkpoint that was passed over.
  Raises:
    UserError: the folder holds another run; the data cannot feed the plan.
    NotFiniteError: the loss stopped being a number.
  """
  documents = documents_of(store.tokenizer, config.data.cross_documents)
  options = step_options(config, plan, documents)
  mesh = mesh_here(config, plan)
  run_folder.claim(folder, configs.to_json(config), plan.to_dict(), write=multihost.is_first())
  if (finished := run_folder.read_result(folder)) is not None:
    return finished
  architecture, model = plan.architecture, model_options(config)
  optimizer = optimizer_options(config, plan)
  loader = functools.partial(
    Loader,
    store.train,
    plan.batch_sequences,
    plan.seq_len,
    plan.num_unique_tokens,
    config.data.seed,
    num_tokens=plan.num_tokens,
    mixture=plan.mixture,
    host_index=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  ledger = Ledger.for_loader(loader())  # also refuses a budget larger than the corpus, early
  train_step = make_train_step(architecture, model, optimizer, options, mesh)
  scorer = make_scorer(architecture, model, documents, mesh)
  stored = stored_state(architecture, model, optimizer, mesh)
  checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints)
  if restored := checkpoints.restore(stored, ledger.state()):
    for warning in restored.warnings if multihost.is_first() else ():
      warn(f"{plan.name}: {warning}; going on from step {restored.step}")
    first = restored.step
    state = from_stored(restored.state, abstract_state(architecture, model, optimizer, mesh))
    ledger.restore(restored.ledger)
  else:
    first, state = 0, init_state(architecture, model, optimizer, plan.seed, mesh)
  tokens = jax.ShapeDtypeStruct((plan.batch_sequences, plan.seq_len), np.int32)
  start = time.perf_counter()
  train_step = train_step.lower(state, tokens, tokens).compile()
  compile_seconds = time.perf_counter() - start
  telemetry = Telemetry(folder, from_step=first) if multihost.is_first() else Silent()
  peak = measured_peak(config.model.dtype) * (1 if mesh is None else mesh.size)
  clock = Clock(
    plan.batch_sequences * plan.seq_len, plan.train_flops_per_token, peak, folder, first
  )

  def validate(mode: str, max_tokens: int) -> dict:
    return bits_per_character.evaluate(
      scorer(state.params, state.buffers),
      store.validation,
      mode=mode,
      seq_len=plan.seq_len,
      stride=config.evaluation.stride if mode == "strided" else 0,
      max_tokens=max_tokens,
      batch_sequences=config.evaluation.batch_sequences,
      seed=config.data.seed,
    )

  def record(step: int, scalars: dict) -> None:
    """Writes a finished step; the caller has already started the next."""
    scalars = jax.device_get(scalars)
    loss = float(scalars["loss"])
    if not np.isfinite(loss):
      checkpoints.wait()
      kept = next(iter(checkpoints.steps()), None)
      what = f"the checkpoint of step {kept} is kept in" if kept else "no checkpoint is yet in"
      raise NotFiniteError(
        f"arm {plan.name!r}: the loss of step {step} is {loss}; {what} {checkpoints.folder}; lower"
        f" --config.arms.{plan.name}.learning_rate_multiplier"
      )
    if due(step, config.train.log_every, plan.num_steps) or step == first + 1:
      line = log_line(step, scalars, clock)
      telemetry.write(line)
      if "load_LE" in scalars:
        telemetry.write_routing(step, line["num_tokens"], scalars["load_LE"])
      if multihost.is_first():
        report(Progress(step, plan.num_steps, line))

  try:
    pending = None
    batches = itertools.islice(
      iter(loader(start_row=first * plan.batch_sequences)), plan.num_steps - first
    )
    batches = prefetch(batches, functools.partial(to_device, mesh=mesh))
    for step in range(first + 1, plan.num_steps + 1):
      batch = next(batches)
      ledger.update(batch["window"])  # refuses what is over the budget before it is trained on
      state, scalars = train_step(state, batch["inputs"], batch["targets"])  # does not wait
      if pending is not None:
        record(step - 1, pending)
      pending = scalars
      evaluating = due(step, config.train.eval_every, plan.num_steps)
      saving = due(step, config.train.save_every, plan.num_steps)
      # Both need this step's own loss to be known good first; a user waits for the first.
      if evaluating or saving or step == first + 1:
        record(step, pending)
        pending = None
        with clock.paused():
          if evaluating and step < plan.num_steps:
            telemetry.write(
              validation_line(step, clock, validate("packed", config.train.eval_tokens))
            )
          if saving:
            telemetry.save_routing()
            ledger.collect(multihost.gather)
            checkpoints.save(step, to_stored(state, stored), ledger.state())
    checkpoints.wait()
    validation = validate(config.evaluation.mode, config.evaluation.max_tokens)
    choices = None
    if architecture.is_moe and config.evaluation.routing_tokens:
      choices = count_split(
        make_counter(architecture, model, mesh)(state.params, state.buffers),
        store.validation,
        architecture,
        seq_len=plan.seq_len,
        batch_sequences=config.evaluation.batch_sequences,
        max_tokens=config.evaluation.routing_tokens,
        seed=config.data.seed,
      )
    if not multihost.is_first():
      multihost.wait(f"{plan.name}: finished")  # the first process writes the result meanwhile
      return run_folder.read_result(folder)
    if choices is not None:
      specialisation.save(choices, folder)
    ledger.save(folder / "ledger.npz")
    result = {
      "name": plan.name,
      "kind": plan.kind,
      "role": plan.role,
      "seed": plan.seed,
      "finished_step": plan.num_steps,
      "seconds": clock.seconds,
      "compile_seconds": compile_seconds,
      "train_cross_entropy": final_cross_entropy(folder, plan.num_steps),
      "validation": validation,
    }
    run_folder.write_json(folder / run_folder.RESULT, result)
    multihost.wait(f"{plan.name}: finished")
    return result
  finally:
    telemetry.close()
    checkpoints.close()


def to_device(batch: dict[str, np.ndarray], mesh: Mesh | None) -> dict:
  """Starts moving what a step reads to its devices; `window` stays on the host for the ledger."""
  return batch | {name: on_devices(batch[name], mesh) for name in ("inputs", "targets")}


def due(step: int, every: int, last: int) -> bool:
  """Whether something done every `every` steps (0: only at the end) is done after `step`."""
  return step == last or (every > 0 and step % every == 0)


def final_cross_entropy(folder: pathlib.Path, num_steps: int) -> float:
  """Mean logged training cross-entropy of the last 5 % of the steps, in nats a token."""
  tail = [
    line["cross_entropy"]
    for line in read_metrics(folder)
    if line["kind"] == "train" and line["step"] > 0.95 * num_steps
  ]
  return float(np.mean(tail))
