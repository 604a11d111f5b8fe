"""A trained run back from its folder, without knowing the config file it came from."""

import dataclasses
import pathlib

import jax
from ml_collections import ConfigDict

from moe_parity.data.prepare import open_data
from moe_parity.errors import UserError
from moe_parity.evaluation import bits, specialisation
from moe_parity.evaluation.choices import count_split, make_counter
from moe_parity.evaluation.score import make_scorer
from moe_parity.model.documents import documents_of
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.resources.architecture import Architecture
from moe_parity.training import run_folder
from moe_parity.training.checkpoint import load_model
from moe_parity.training.program import model_options


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """What a run learned, and the config and plan it learned by."""

  architecture: Architecture
  options: ModelOptions
  params: object
  buffers: object
  config: ConfigDict
  plan: dict


def load_run(folder: pathlib.Path) -> TrainedModel:
  """The model of the newest checkpoint of a run.

  Raises:
    UserError: the folder is no run, or holds no checkpoint that can be read.
  """
  for name in (run_folder.PLAN, run_folder.CONFIG):
    if not (folder / name).exists():
      raise UserError(f"{folder} is no run folder (no {name}); give a folder that `train` made")
  plan = run_folder.read_json(folder / run_folder.PLAN)
  config = ConfigDict(run_folder.read_json(folder / run_folder.CONFIG))
  architecture = Architecture.from_dict(plan["architecture"])
  options = model_options(config)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
    abstract_model(architecture, options)[1:],
  )
  params, buffers = load_model(folder / "checkpoints", *shapes)
  return TrainedModel(architecture, options, params, buffers, config, plan)


def evaluate_run(folder: pathlib.Path, mode: str, stride: int, max_tokens: int) -> dict:
  """Scores a run on the validation split of its own data; see `bits.evaluate`."""
  run = load_run(folder)
  store = open_data(run.config.data)
  documents = documents_of(store.tokenizer, run.config.data.cross_documents)
  return bits.evaluate(
    make_scorer(run.architecture, run.options, documents)(run.params, run.buffers),
    store.validation,
    mode=mode,
    seq_len=run.plan["seq_len"],
    stride=stride,
    max_tokens=max_tokens,
    batch_sequences=run.config.evaluation.batch_sequences,
    seed=run.config.data.seed,
  )


def count_run_choices(folder: pathlib.Path, max_tokens: int) -> pathlib.Path:
  """Counts which experts the run's held-out text goes to; writes and returns specialisation.npz.

  Args:
    max_tokens: held-out tokens to look at, 0 for all.
  Raises:
    UserError: the folder is no run, or its model is dense.
  """
  run = load_run(folder)
  count = make_counter(run.architecture, run.options)(run.params, run.buffers)
  choices = count_split(
    count,
    open_data(run.config.data).validation,
    run.architecture,
    seq_len=run.plan["seq_len"],
    batch_sequences=run.config.evaluation.batch_sequences,
    max_tokens=max_tokens,
    seed=run.config.data.seed,
  )
  return specialisation.save(choices, folder)
