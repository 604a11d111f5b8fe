"""Loads a trained run from its folder, without the config file that it was made from."""

import dataclasses
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe_parity.config import from_stored
from moe_parity.data.fingerprint import check_same_data
from moe_parity.data.prepare import open_data
from moe_parity.data.token_store import TokenStore
from moe_parity.data.tokenizer import Tokenizer, load
from moe_parity.errors import UserError
from moe_parity.evaluation import bits_per_character, specialization
from moe_parity.evaluation.model_scorer import make_scorer
from moe_parity.evaluation.routing_counts import count_routing, make_routing_counter
from moe_parity.evaluation.split_rows import check_rows
from moe_parity.fields.check import check_sections
from moe_parity.inference.generator import Generator
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.model.documents import document_separators
from moe_parity.model.options import ModelOptions
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.config_rules import check_config, check_scoring
from moe_parity.planning.mesh_sizes import MeshSizes, check_shape, resolve
from moe_parity.sharding.mesh import make_mesh
from moe_parity.training import run_folder
from moe_parity.training.build import model_options
from moe_parity.training.checkpoint import load_model
from moe_parity.training.checkpoint_hashes import run_identity
from moe_parity.training.state import from_checkpoint, model_shardings


def open_run_data(
  folder: pathlib.Path,
  config: ConfigDict,
  *,
  only_tokenizer: bool = False,
  prepare_data: bool = False,
) -> TokenStore:
  """The token store that a run was trained with.

  Args:
    only_tokenizer: the caller needs no text, so only the tokenizer must be the run's.
    prepare_data: fetch and make what the config names; else it must be on this machine already,
      since the folder may be a stranger's.
  Raises:
    UserError: what its config leads to today holds other data (names what differs), or is not here.
  """
  data = config.data
  if (folder / run_folder.TOKENIZER).is_file():  # of an import, which may have moved since
    data = ConfigDict({**data, "tokenizer": str(folder / run_folder.TOKENIZER)})
  store = open_data(data, make=prepare_data)
  if (folder / run_folder.DATA).exists():  # runs before November 2026 have none
    stored = run_folder.read_json(folder / run_folder.DATA)["fingerprint"]
    fingerprint = store.fingerprint()
    if only_tokenizer:
      stored, fingerprint = ({"tokenizer": part["tokenizer"]} for part in (stored, fingerprint))
    check_same_data(stored, fingerprint, str(folder), config.data.source)
  return store


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A trained model, and the config and plan of its run."""

  architecture: Architecture
  options: ModelOptions
  params: object
  buffers: object
  config: ConfigDict
  plan: dict
  mesh: Mesh | None = None


def load_run(
  folder: pathlib.Path,
  sizes: MeshSizes = MeshSizes(),  # noqa: B008 - frozen
  step: int | None = None,
) -> TrainedModel:
  """The model of a checkpoint of a run, on a mesh of these sizes, whatever it trained on.

  Args:
    step: of the checkpoint; None takes the newest.
  Raises:
    UserError: the folder is no run, or holds no checkpoint that can be read; a mesh that the
      devices or the model do not fit.
  """
  config, plan = read_config(folder), read_plan(folder)
  architecture = Architecture.from_dict(plan["architecture"])
  options = model_options(config)
  sizes = resolve(sizes, jax.device_count())
  check_shape(sizes, plan["name"], architecture)
  mesh = make_mesh(sizes)
  layout, placed = model_shardings(architecture, options, mesh)
  weights = load_model(folder / "checkpoints", *layout, step, run_identity(plan))
  params, buffers = from_checkpoint(weights, placed)
  return TrainedModel(architecture, options, params, buffers, config, plan, mesh)


def read_plan(folder: pathlib.Path) -> dict:
  """A run's plan.json.

  Raises:
    UserError: the folder is no run, or the file is damaged.
  """
  plan = _read(folder, run_folder.PLAN)
  if "architecture" not in plan:
    raise UserError(f"{folder} is a study; give one of its runs, such as {folder}/runs/moe_20-s0")
  return plan


def _read(folder: pathlib.Path, name: str) -> Any:
  if not (folder / name).is_file():
    raise UserError(f"{folder} is no run folder (no {name}); give a folder that `train` made")
  return run_folder.read_json(folder / name)


def read_config(folder: pathlib.Path) -> ConfigDict:
  """A run's config.

  Raises:
    UserError: it is no JSON, or no config that could be trained.
  """
  path = folder / run_folder.CONFIG
  stored = _read(folder, run_folder.CONFIG)
  try:
    check_sections(stored)
    stored = from_stored(stored)
    check_config(stored)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  return ConfigDict(stored)


def open_tokenizer(folder: pathlib.Path, run: TrainedModel, path: str = "") -> Tokenizer:
  """A run's tokenizer, from its data or from a tokenizer.json.

  An imported model may have more ids than its tokenizer, as published ones often do.

  Raises:
    UserError: another tokenizer than the run's.
  """
  loaded = load(path) if path else None
  if loaded is None and (folder / run_folder.TOKENIZER).exists():
    loaded = load(folder / run_folder.TOKENIZER)
  if loaded is None:
    loaded = open_run_data(folder, run.config, only_tokenizer=True).tokenizer
  vocab_size = run.architecture.vocab_size
  may_be_smaller = run.plan.get("kind") == "imported"
  if loaded.vocab_size != vocab_size and not (may_be_smaller and loaded.vocab_size < vocab_size):
    raise UserError(
      f"tokenizer {loaded.name} has {loaded.vocab_size} ids and the run's vocabulary {vocab_size};"
      " give the tokenizer that the run was trained with"
    )
  return loaded


def open_generator(
  folder: pathlib.Path,
  sizes: MeshSizes = MeshSizes(),  # noqa: B008 - frozen
  *,
  step: int | None = None,
  dtype: str = "",
  num_positions: int = 0,
  tokenizer: str = "",
) -> tuple[Generator, Tokenizer]:
  """A run's model, ready to continue text, and its tokenizer.

  Args:
    dtype: to compute in; "" as it was trained.
    num_positions: of prompt and text together; 0 as many as it was trained on.
    tokenizer: a tokenizer.json, where the run's data are not on this machine; "" takes the data's.
  Raises:
    UserError: more positions than a model without ALiBi has seen; another tokenizer than the
      run's; weights that are not finite; see `load_run`.
  """
  run = load_run(folder, sizes, step)
  options = dataclasses.replace(run.options, dtype=dtype) if dtype else run.options
  num_positions = window(run, num_positions)
  loaded = open_tokenizer(folder, run, tokenizer)
  generator = Generator(
    InferenceModel(run.architecture, options, run.params, run.buffers, run.mesh),
    num_positions=num_positions,
    num_ids=loaded.vocab_size,
    documents=document_separators(loaded, run.config.data.cross_documents),
  )
  return generator, loaded


def window(run: TrainedModel, num_positions: int) -> int:
  """Positions that a run's model takes: those of training, or `num_positions`.

  Raises:
    UserError: more than a model without ALiBi has seen, or less than none.
  """
  trained, position = run.plan["seq_len"], run.options.position
  if num_positions > trained and position != "alibi":
    raise UserError(
      f"context={num_positions} exceeds the {trained} positions of training, and the distances"
      f" beyond them mean nothing to a model with position={position!r}; use at most"
      f" {trained} (ALiBi alone takes more)"
    )
  if num_positions < 0:
    raise UserError(f"context={num_positions} is negative; use 0 for the {trained} of training")
  return num_positions or trained


def evaluate_run(
  folder: pathlib.Path,
  mode: str,
  stride: int,
  max_tokens: int,
  sizes: MeshSizes = MeshSizes(),  # noqa: B008 - frozen
  prepare_data: bool = False,
) -> dict:
  """Scores a run on its own validation split; see `bits_per_character.evaluate`, `load_run`.

  What is asked is checked before the model is loaded.

  Args:
    prepare_data: as of `open_run_data`.
  """
  config, plan = read_config(folder), read_plan(folder)
  batch_sequences = config.evaluation.batch_sequences
  check_scoring(mode, plan["seq_len"], batch_sequences, stride, max_tokens)
  store = open_run_data(folder, config, prepare_data=prepare_data)
  check_rows(store.validation, plan["seq_len"], mode)
  run = load_run(folder, sizes)
  documents = document_separators(store.tokenizer, run.config.data.cross_documents)
  return bits_per_character.evaluate(
    make_scorer(run.architecture, run.options, documents, run.mesh)(run.params, run.buffers),
    store.validation,
    mode=mode,
    seq_len=run.plan["seq_len"],
    stride=stride,
    max_tokens=max_tokens,
    batch_sequences=batch_sequences,
    seed=config.data.seed,
  )


def count_run_routing(
  folder: pathlib.Path,
  max_tokens: int,
  sizes: MeshSizes = MeshSizes(),  # noqa: B008 - frozen
  prepare_data: bool = False,
) -> pathlib.Path:
  """Counts which experts the run's held-out text goes to; writes and returns specialization.npz.

  Args:
    max_tokens: held-out tokens to route, 0 for all.
    prepare_data: as of `open_run_data`.
  Raises:
    UserError: its model is dense; see `load_run`.
  """
  run = load_run(folder, sizes)
  count = make_routing_counter(run.architecture, run.options, run.mesh)(run.params, run.buffers)
  counts = count_routing(
    count,
    open_run_data(folder, run.config, prepare_data=prepare_data).validation,
    run.architecture,
    seq_len=run.plan["seq_len"],
    batch_sequences=run.config.evaluation.batch_sequences,
    max_tokens=max_tokens,
    seed=run.config.data.seed,
  )
  return specialization.save(counts, folder)
