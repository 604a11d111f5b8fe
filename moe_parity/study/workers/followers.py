"""Several processes as one worker of a study: the first chooses runs, the others train along.

The first process is the worker that claims, certifies and writes; before it trains a run it tells
the others which. An error that every process meets (a loss that is no number) fails the run and the
study goes on; an error of one process alone ends them all, and the same command goes on from there.
"""

import dataclasses
import pickle

import jax
from ml_collections import ConfigDict

from moe_parity.data.token_store import TokenStore
from moe_parity.errors import UserError
from moe_parity.sharding import multihost
from moe_parity.study.workers.runner import Trainer
from moe_parity.training.loop import train_arm


def leading(trainer: Trainer) -> Trainer:
  """`trainer`, with the other processes at its side; itself where there are none."""
  if jax.process_count() == 1:
    return trainer

  def train(config, arm, store, folder, *rest):
    multihost.broadcast_bytes(pickle.dumps((config.to_dict(), arm, folder)))
    return trainer.train(config, arm, store, folder, *rest)

  return dataclasses.replace(trainer, train=train)


def follow(store: TokenStore) -> None:
  """Trains what the first process trains, until it says that there is no more."""
  while (told := multihost.broadcast_bytes(None)) is not None:
    config, arm, folder = pickle.loads(told)
    try:
      train_arm(ConfigDict(config).lock(), arm, store, folder)
    except UserError:
      continue  # the first process met it too and writes it down


def dismiss() -> None:
  """Lets the other processes end."""
  if jax.process_count() > 1:
    multihost.broadcast_bytes(None)
