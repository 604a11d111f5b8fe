"""A run as a folder that transformers loads: weights, config, tokenizer, model card."""

import dataclasses
import json
import pathlib
import secrets
import shutil

from moe_parity import files
from moe_parity.data import chat_template, checked_json
from moe_parity.data.tokenizer import Tokenizer, standard
from moe_parity.errors import UserError
from moe_parity.fields.choices import LEARNED
from moe_parity.inference.inference_model import check_finite
from moe_parity.interchange import hf_config, shards
from moe_parity.interchange.model_card import model_card
from moe_parity.interchange.tensors import leaves_of, tensors
from moe_parity.training.load_run import TrainedModel, load_run, open_tokenizer

SHARD_BYTES = 5 * 10**9
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclasses.dataclass(frozen=True)
class Exported:
  """What was written: the folder, the model_type, the weight files, the model and its tokenizer."""

  folder: pathlib.Path
  model_type: str
  weight_files: list[str]
  model: TrainedModel
  tokenizer: Tokenizer


def export_run(
  run: pathlib.Path,
  out: pathlib.Path,
  *,
  step: int | None = None,
  model_type: str = "",
  tokenizer: str = "",
  shard_bytes: int = SHARD_BYTES,
) -> Exported:
  """Writes a checkpoint of a run to a new folder, which appears when it is complete.

  Args:
    step: of the checkpoint; None takes the newest.
    model_type: "llama", "qwen2_moe", "ernie4_5_moe", "moe_parity", or "" for the first of these
      that holds it exactly.
    tokenizer: a tokenizer.json, where the run's data are not on this machine.
    shard_bytes: the most a weight file holds.
  Raises:
    UserError: the folder is not empty, the class cannot hold the model, weights are not finite, a
      tokenizer of another size; see `load_run`.
  """
  shards.safetensors_numpy()
  if out.name in ("", ".."):
    raise UserError(f"--out={out} has no name of its own; give a new folder by its name")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out={out} exists and is not empty; give a new folder")
  if shard_bytes < 1:
    raise UserError(f"shard size {shard_bytes} must be at least 1 byte; 5 GB is usual")
  model = load_run(run, step=step)
  found = open_tokenizer(run, model, tokenizer)
  check_finite(model.params)
  leaves = leaves_of(model.params, model.buffers)
  has_bias = any(path[-1] == "selection_bias" and leaf.any() for path, leaf in leaves.items())
  model_type = hf_config.choose_class(model.architecture, model.options, has_bias, model_type)
  out.parent.mkdir(parents=True, exist_ok=True)
  unfinished = out.with_name(f"{out.name}.{secrets.token_hex(4)}.tmp")
  unfinished.mkdir()
  try:
    learned = model.options.routed_scale == LEARNED
    listed = tensors(model.architecture, model_type, learned_scale=learned)
    names = shards.write(unfinished, listed, lambda tensor: tensor.read(leaves), shard_bytes)
    _write_config(unfinished, model, found, model_type)
    write_tokenizer(unfinished, found, model.plan["seq_len"], chat_template.read(run))
    card = model_card(run, model_type, step)
    files.write_bytes(unfinished / "README.md", card.encode("utf-8"))
    if out.exists():
      out.rmdir()
    unfinished.rename(out)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return Exported(out, model_type, names, model, found)


def _write_config(folder, model: TrainedModel, tokenizer: Tokenizer, model_type: str) -> None:
  ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
  config = hf_config.make_config(
    model.architecture, model.options, model_type, seq_len=model.plan["seq_len"], ids=ids
  )
  files.write_json(folder / "config.json", config)
  # A document ends with one token and the next begins with another: both end a text.
  generation = {**ids, "eos_token_id": sorted(tokenizer.end_ids), "do_sample": False}
  files.write_json(folder / "generation_config.json", generation)
  if model_type == hf_config.OWN:
    code = pathlib.Path(__file__).with_name("remote_code")
    for name in hf_config.REMOTE_CODE:
      shutil.copyfile(code / name, folder / name)


def write_tokenizer(
  folder: pathlib.Path,
  tokenizer: Tokenizer,
  seq_len: int,
  template: chat_template.ChatTemplate | None = None,
) -> None:
  """tokenizer.json and tokenizer_config.json; a text is begun with the token that begins one.

  Args:
    template: of a run that was trained on chats; apply_chat_template then works.
  """
  description = json.loads(json.dumps(standard(tokenizer.description)))
  names = {token["id"]: token["content"] for token in description.get("added_tokens") or []}
  vocab = description["model"].get("vocab")
  if isinstance(vocab, dict):
    names = {i: token for token, i in vocab.items()} | names
  special = {kind: names.get(getattr(tokenizer, f"{kind}_id")) for kind in ("bos", "eos", "pad")}
  bos = special["bos"]
  own = description.get("post_processor")  # may leave the ids as they are, as GPT-2's does
  if bos is not None and not adds_tokens(own):
    one = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    description["post_processor"] = {
      "type": "TemplateProcessing",
      "single": one,
      "pair": [*one, {"Sequence": {"id": "B", "type_id": 0}}],
      "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }
    if own is not None:
      both = [own, description["post_processor"]]
      description["post_processor"] = {"type": "Sequence", "processors": both}
  text = json.dumps(description, ensure_ascii=False, indent=1)
  files.write_bytes(folder / "tokenizer.json", text.encode("utf-8"))
  config = {f"{kind}_token": name for kind, name in special.items() if name is not None}
  config |= {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": seq_len,
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
  }
  if template is not None:
    config["chat_template"] = template.jinja()
  files.write_json(folder / TOKENIZER_CONFIG, config)


def adds_tokens(post_processor: dict | None) -> bool:
  """Whether a post-processor of a tokenizer.json adds tokens to a text."""
  if post_processor is None or post_processor.get("type") == "ByteLevel":
    return False
  if post_processor.get("type") == "Sequence":
    return any(map(adds_tokens, post_processor.get("processors") or []))
  return True


def read_json(folder: pathlib.Path, name: str) -> dict:
  """A JSON object of a Hugging Face folder.

  Raises:
    UserError: the file is not there or holds none.
  """
  if not (folder / name).is_file():
    raise UserError(f"{folder} has no {name}; give a folder as transformers' save_pretrained makes")
  return checked_json.read(folder / name, {}, "download it again")
