"""A Hugging Face folder as a run: what `evaluate`, `generate` and `export` read of one."""

import dataclasses
import pathlib
import shutil
import uuid
from collections.abc import Sequence

import numpy as np

from moe_parity import config as configs
from moe_parity import files
from moe_parity.data import corpus
from moe_parity.data.chat_template import ChatTemplate, from_jinja
from moe_parity.data.tokenizer import OURS, Tokenizer
from moe_parity.defaults import base
from moe_parity.errors import UserError
from moe_parity.fields.choices import LEARNED
from moe_parity.interchange import document_ids, shards
from moe_parity.interchange.export import TOKENIZER_CONFIG, read_json
from moe_parity.interchange.read_config import Imported, read_config
from moe_parity.interchange.tensors import (
  ERNIE,
  QWEN2_MOE,
  Leaves,
  Tensor,
  tensors,
  with_leaves,
  zero_leaves,
)  # fmt: skip
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.training import run_folder
from moe_parity.training.checkpoint import save_model

TIED = "lm_head.weight"  # is the embedding where words are tied
_UNUSED = ("rotary_emb.inv_freq",)  # of older files; follows from the config
_NEXT_TOKENS = "mtp_"  # Ernie4.5's further heads, which transformers leaves out as well


@dataclasses.dataclass(frozen=True)
class ImportedRun:
  """What was made of a folder: the shape, what of its files no model of the class reads, and what
  to know of the tokens that begin and end a document."""

  architecture: Architecture
  unread_keys: list[str]
  unread_tensors: list[str]
  notes: list[str]


def import_folder(
  folder: pathlib.Path,
  out: pathlib.Path,
  source: str = "builtin",
  *,
  as_class: str = "",
  ignored_keys: Sequence[str] = (),
) -> ImportedRun:
  """Makes a run folder of a model's; nothing is rounded.

  Args:
    source: text that `evaluate` scores, as a config's `data.source`.
    as_class, ignored_keys: of a config.json of another layout; see `read_config`.
  Raises:
    UserError: a field or a tensor that our model cannot hold, one that is missing, has another
      shape or is not finite; a missing shard; more ids of the tokenizer than of the model.
  """
  if not folder.is_dir():
    raise UserError(
      f"{folder} is no folder; give one with config.json and safetensors files. A model of the hub"
      " is downloaded first: hf download NAME --local-dir=HF_DIR"
    )
  if (folder / run_folder.PLAN).is_file():
    raise UserError(f"{folder} is a run folder; evaluate, generate and export take it as it is")
  absent = [each.path for each in corpus.parse_sources(source) if not corpus.is_there(each.path)]
  if absent:
    raise UserError(f"--data={source}: {absent[0]} does not exist; give text to score, or builtin")
  if out.name in ("", ".."):
    raise UserError(f"--out={out} has no name of its own; give a new folder by its name")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out={out} exists and is not empty; give a new folder")
  imported = read_config(read_json(folder, "config.json"), as_class, ignored_keys)
  tokenizer, notes = _open_tokenizer(folder, imported.shape["vocab_size"])
  where = shards.weight_map(folder)
  unread = [n for n in where if imported.model_type == ERNIE and _NEXT_TOKENS in n]
  where = {name: file for name, file in where.items() if name not in unread}
  architecture = _architecture(imported, folder, where)
  options = ModelOptions(**imported.model)
  _, params, buffers = abstract_model(architecture, options)
  leaves = zero_leaves(params, buffers)
  _fill(leaves, _expected(architecture, imported), folder, where, imported.is_tied)
  out.parent.mkdir(parents=True, exist_ok=True)
  unfinished = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    states = with_leaves(params, leaves), with_leaves(buffers, leaves)
    save_model(unfinished / "checkpoints", 0, *states)
    _write_run(unfinished, out, folder, architecture, imported, source, tokenizer)
    if out.exists():
      out.rmdir()
    unfinished.rename(out)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return ImportedRun(architecture, imported.unread_keys, unread, notes)


def _open_tokenizer(folder: pathlib.Path, vocab_size: int) -> document_ids.TokenizerWithNotes:
  if not (folder / run_folder.TOKENIZER).is_file():
    raise UserError(
      f"{folder} has no tokenizer.json, without which text has no ids; load its tokenizer in"
      " transformers and save_pretrained"
    )
  found = document_ids.open_tokenizer(folder)
  if found.tokenizer.vocab_size > vocab_size:
    raise UserError(
      f"{folder}: the tokenizer has {found.tokenizer.vocab_size} ids and config.json vocab_size="
      f"{vocab_size}; take the tokenizer that belongs to the model"
    )
  return found


def _expected(architecture: Architecture, imported: Imported) -> list[Tensor]:
  learned = imported.model["routed_scale"] == LEARNED
  return tensors(architecture, imported.model_type, learned_scale=learned)


def _architecture(imported: Imported, folder, where: dict[str, str]) -> Architecture:
  """The shape; without a shared expert where a Qwen2Moe file's are all zero."""
  architecture = Architecture(**imported.shape)
  if imported.model_type != QWEN2_MOE or not architecture.d_shared:
    return architecture
  downs = {n: f for n, f in where.items() if n.endswith("mlp.shared_expert.down_proj.weight")}
  if downs and not any(array.any() for _, array in shards.read(folder, downs)):
    return dataclasses.replace(architecture, d_shared=0)
  return architecture


def _fill(leaves: Leaves, expected: list[Tensor], folder, where, is_tied: bool) -> None:
  """Reads every tensor into our leaves."""
  wanted = {tensor.name: tensor for tensor in expected}
  embedding = expected[0].name
  unknown = [n for n in where if n not in wanted and not n.endswith(_UNUSED)]
  if unknown:
    raise UserError(
      f"{folder} holds tensor {unknown[0]}, which this project's model has no place for"
      f"{_more(unknown)}; only a model without it can be imported"
    )
  missing = [n for n in wanted if n not in where and not (is_tied and n == TIED)]
  missing = [n for n in missing if not n.endswith("_proj.bias")]  # zero where there is none
  if missing:
    raise UserError(
      f"{folder} lacks tensor {missing[0]}{_more(missing)}, which its config.json says it has;"
      " download it again"
    )
  for name, array in shards.read(folder, {n: f for n, f in where.items() if n in wanted}):
    _put(leaves, wanted[name], array, folder)
    if name == embedding and is_tied and TIED not in where:
      _put(leaves, wanted[TIED], array, folder)
  if is_tied and not np.array_equal(leaves[wanted[TIED].path], leaves[expected[0].path].T):
    raise UserError(
      f"{folder}: config.json has tie_word_embeddings=True, and {TIED} is not {embedding}; set it"
      f" to false, or take {TIED} out of the files, as the model was trained"
    )


def _put(leaves: Leaves, tensor: Tensor, array: np.ndarray, folder) -> None:
  if array.shape != tensor.shape and tensor.path:
    raise UserError(
      f"{folder}: tensor {tensor.name} has shape {list(array.shape)} and config.json says"
      f" {list(tensor.shape)}; take files and config.json of one model"
    )
  tensor.write(leaves, array)


def _more(names: list[str]) -> str:
  return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _write_run(
  unfinished, out, folder, architecture, imported: Imported, source: str, tokenizer: Tokenizer
) -> None:
  """config.json, plan.json and tokenizer.json of the run folder."""
  config = base()
  config.name = folder.resolve().name
  config.data.source = source
  config.data.tokenizer = str(out.resolve() / run_folder.TOKENIZER)
  config.budget.seq_len = imported.seq_len
  cost = cost_of(architecture, imported.seq_len, config.budget.convention)
  config.budget.num_params = cost.num_params
  for name, value in imported.model.items():
    config.model[name] = value
  files.write_json(unfinished / run_folder.CONFIG, configs.to_json(config))
  plan = {
    "name": folder.resolve().name,
    "kind": "imported",
    "role": "arm",
    "seed": 0,
    "architecture": architecture.to_dict(),
    "seq_len": imported.seq_len,
    "imported_from": imported.model_type,
  }
  files.write_json(unfinished / run_folder.PLAN, plan)
  if tokenizer.description.keys() & set(OURS):
    tokenizer.save(unfinished / run_folder.TOKENIZER)
  else:
    shutil.copyfile(folder / run_folder.TOKENIZER, unfinished / run_folder.TOKENIZER)
  if template := _chat_template(folder, tokenizer):
    template.save(unfinished)


def _chat_template(folder: pathlib.Path, tokenizer: Tokenizer) -> ChatTemplate | None:
  """The chat template of a model that was exported here; None for one written elsewhere, whose
  language allows more than ours."""
  path = folder / TOKENIZER_CONFIG
  text = read_json(folder, TOKENIZER_CONFIG).get("chat_template") if path.is_file() else None
  if not isinstance(text, str):
    return None
  return from_jinja(text, tokenizer)
