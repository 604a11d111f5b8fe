"""What sets one stage of training apart from another: its rows, its first state, its own scores.

Everything else is the training loop's: steps, checkpoints, ledger, leases, signals, telemetry.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from moe_parity.data.loader import Loader, Rows
from moe_parity.data.token_store import Split, TokenStore
from moe_parity.model.documents import DocumentSeparators, document_separators
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.training.state import TrainState, init_state


@dataclasses.dataclass(frozen=True)
class TrainingStage:
  """One stage of training.

  Attributes:
    make_loader: (rows already read by all hosts) -> the loader of what follows.
    initial_state: (model options, optimizer options, mesh) -> the state before the first step.
    documents: separators of the rows, where attention must not cross documents, and which targets
      count; None lets attention cross and counts all.
    further_results: (run, trained state) -> fields that result.json gains; every process of a run
      calls it.
  """

  make_loader: Callable[[int], Loader]
  initial_state: Callable[..., TrainState]
  documents: DocumentSeparators | None = None
  further_results: Callable[[Any, TrainState], dict] = lambda run, state: {}


def pretraining(config: ConfigDict, plan: ArmPlan, store: TokenStore) -> TrainingStage:
  """Windows of the store's text, and weights that the arm's seed draws."""

  def initial_state(model, optimizer, mesh):
    return init_state(plan.architecture, model, optimizer, plan.seed, mesh)

  return TrainingStage(
    functools.partial(loader_of, plan, store.train),
    initial_state,
    document_separators(store.tokenizer, config.data.cross_documents),
  )


def loader_of(plan: ArmPlan, rows: Split | Rows, start_row: int = 0) -> Loader:
  """The rows of a run in their planned order, this process's part of each batch."""
  return Loader(
    rows,
    plan.batch_sequences,
    plan.seq_len,
    plan.num_unique_tokens,
    plan.data_seed,
    start_row=start_row,
    num_tokens=plan.num_tokens,
    mixture=plan.mixture,
    host_index=jax.process_index(),
    num_hosts=jax.process_count(),
  )
