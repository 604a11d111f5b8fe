"""Fine-tunes one arm into a run folder of its own, by the loop that pretrained it."""

import functools
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from moe_parity import files
from moe_parity.data.token_store import TokenStore
from moe_parity.errors import UserError
from moe_parity.evaluation.model_scorer import make_scorer
from moe_parity.finetuning.base_run import BaseRun
from moe_parity.finetuning.chat_rows import ChatRows, open_chats
from moe_parity.finetuning.chat_scores import score_chats
from moe_parity.inference.inference_model import check_finite
from moe_parity.model.documents import ChatSeparators
from moe_parity.planning.finetuning_plan import FinetuningPlan, plan_finetuning
from moe_parity.sharding import multihost
from moe_parity.training import run_folder
from moe_parity.training.build import config_of_arm, model_options
from moe_parity.training.checkpoint import load_model
from moe_parity.training.control import RunControl
from moe_parity.training.loop import Progress, train_arm
from moe_parity.training.setup import ArmRun
from moe_parity.training.stage import TrainingStage, loader_of
from moe_parity.training.state import (
  TrainState,
  from_checkpoint,
  model_shardings,
  with_fresh_optimizer,
)

BEFORE = "before.json"  # the pretrained model's score on the held-out chats


def chat_rows(config: ConfigDict, store: TokenStore, seq_len: int) -> ChatRows:
  """The chats of a config as rows; the same for every arm."""
  return open_chats(
    config.finetuning,
    store.tokenizer,
    seq_len=seq_len,
    scored_at_a_time=config.evaluation.batch_sequences,
  )


def plan_candidate(
  config: ConfigDict, base: BaseRun, rows: ChatRows, learning_rate: float | int, epochs: int
) -> FinetuningPlan:
  """The plan of one (learning rate, epochs) from a base run."""
  return plan_finetuning(
    base.plan,
    rows.counts | {"base_sha256": base.sha256, "base_step": base.step},
    num_rows=len(rows.train.inputs_RS),
    learning_rate=learning_rate,
    epochs=epochs,
    batch_sequences=config.finetuning.batch_sequences,
  )


def finetune_arm(
  config: ConfigDict,
  plan: FinetuningPlan,
  store: TokenStore,
  base: BaseRun,
  rows: ChatRows,
  folder: pathlib.Path,
  report: Callable[[Progress], None] = lambda progress: None,
  warn: Callable[[str], None] = print,
  control: RunControl | None = None,
) -> dict:
  """`train_arm` from the weights of `base` on chats; returns what result.json holds.

  That gains "finetuning": the score of the trained model on held-out chats and of the pretrained
  one before it. "validation" is the held-out text of pretraining, as ever.

  Raises:
    UserError: see `train_arm`; the base's checkpoint is not the certified one.
  """
  check_rows(plan, rows)
  stage = _stage(config_of_arm(config, plan), plan, store, base, rows, folder)
  return train_arm(config, plan, store, folder, report, warn, control, stage)


def check_rows(plan: FinetuningPlan, rows: ChatRows) -> None:
  """
  Raises:
    UserError: the chats are not those of the plan any more.
  """
  for name, value in rows.counts.items():
    if plan.finetuning[name] != value:
      raise UserError(
        f"the chats changed: {name} is {value}, the plan states {plan.finetuning[name]}; put the"
        " old files back or start in another folder"
      )


def _stage(
  config, plan, store, base: BaseRun, rows: ChatRows, folder: pathlib.Path
) -> TrainingStage:
  separators = ChatSeparators(store.tokenizer.bos_id, store.tokenizer.eos_id)

  def scored(mesh, params, buffers) -> dict:
    scorer = make_scorer(plan.architecture, model_options(config), separators, mesh)
    return score_chats(scorer(params, buffers), rows, config.evaluation.batch_sequences)

  def initial_state(model, optimizer, mesh) -> TrainState:
    base.check_checkpoint()
    layout, placed = model_shardings(plan.architecture, model, mesh)
    loaded = load_model(base.folder / "checkpoints", *layout, base.step)
    params, buffers = from_checkpoint(loaded, placed)
    check_finite(params)
    before = scored(mesh, params, buffers)
    if multihost.is_primary():
      files.write_json(folder / BEFORE, before, seal=True)
      rows.template.save(folder)
    return with_fresh_optimizer(params, buffers, optimizer, mesh)

  def further_results(run: ArmRun, state: TrainState) -> dict:
    before = run_folder.read_json(folder / BEFORE)
    after = scored(run.mesh, state.params, state.buffers)
    return {"finetuning": {"validation": after, "before": before}}

  return TrainingStage(
    functools.partial(loader_of, plan, rows.train), initial_state, separators, further_results
  )
