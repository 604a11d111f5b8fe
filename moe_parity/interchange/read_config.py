"""A Hugging Face config.json as a shape of ours, or the field that our model cannot hold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from moe_parity.errors import UserError, check_choice
from moe_parity.fields.choices import ROPE_BASE
from moe_parity.fields.table import ROWS
from moe_parity.interchange import config_keys
from moe_parity.interchange.hf_config import NORMALIZED, RAW, ernie_moe_layers
from moe_parity.interchange.tensors import ERNIE, LLAMA, MIXTRAL, OWN, QWEN2_MOE
from moe_parity.stored.shape import mismatch

MODEL_TYPES = (LLAMA, QWEN2_MOE, MIXTRAL, ERNIE, OWN)
FULL = "full_attention"
_SHAPE = {  # of keys that are no plain numbers; each may be missing or null
  **dict.fromkeys(("rope_parameters?", "rope_scaling?"), {}),
  **dict.fromkeys(("mlp_only_layers?", "moe_layers?"), [int]),
  "layer_types?": [str],
  **dict.fromkeys(("norm_topk_prob?", "tie_word_embeddings?", "use_sliding_window?"), bool),
  **dict.fromkeys(("attention_bias?", "mlp_bias?", "use_bias?"), bool),
}
_ROOT = "its ALiBi penalty grows with the square root of the distance, this project's model's with"
_NORMS = "it normalizes queries and keys (q_norm, k_norm), which this project's model does not"
_LATENT = "its attention is latent (MLA), which this project's model lacks"
_REASONS = {
  "olmoe": _NORMS,
  "qwen3_moe": _NORMS,
  "deepseek_v2": _LATENT,
  "deepseek_v3": _LATENT,
  "step1": f"{_ROOT} the distance",
  "step1moe": f"{_ROOT} the distance",
}


class Imported(NamedTuple):
  """What a config.json says.

  Attributes:
    shape, model: fields of `Architecture` and of a config's `model` section.
    seq_len: positions trained on.
    unread_keys: that no model of the class reads; they are said to the user.
  """

  model_type: str
  shape: dict[str, Any]
  model: dict[str, Any]
  seq_len: int
  is_tied: bool
  unread_keys: list[str]


def read_config(config: dict, as_class: str = "", ignored_keys: Sequence[str] = ()) -> Imported:
  """
  Args:
    as_class: the model_type whose computation a config of another layout describes; "" takes the
      config's own.
    ignored_keys: of such a config, keys that decide nothing.
  Raises:
    UserError: the class or a field of it that our model cannot hold exactly; a field that is
      missing; a key of another layout that has no counterpart.
  """
  config = _with_class(config, as_class, ignored_keys)
  model_type = config["model_type"]
  unread = config_keys.unread_keys(config, model_type)
  config = config_keys.DEFAULTS[model_type] | config
  if problem := mismatch(config, _SHAPE):
    raise UserError(f"config.json: {problem}; take the file that belongs to the model")
  _check_fixed(config, model_type)
  heads, width = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
  shape = {
    "num_layers": _whole(config, "num_hidden_layers"),
    "d_model": width,
    "num_heads": heads,
    "num_kv_heads": _whole(config, "num_key_value_heads", default=heads),
    "d_head": _whole(config, "head_dim", default=width // heads),
    "vocab_size": _whole(config, "vocab_size"),
  }
  moe_layers = _moe_layers(config, model_type, shape["num_layers"])
  if any(moe_layers):
    shape["layout"] = "".join("M" if is_moe else "D" for is_moe in moe_layers)
    shape |= _experts(config, model_type)
  shape["d_ffn"] = 0 if all(moe_layers) else _whole(config, "intermediate_size")
  positions = _whole(config, "max_position_embeddings")
  tied = bool(config.get("tie_word_embeddings"))
  return Imported(model_type, shape, _model(config, model_type), positions, tied, unread)


def _with_class(config: dict, as_class: str, ignored_keys: Sequence[str]) -> dict:
  """The config under the keys of a class that can be imported."""
  model_type = config.get("model_type")
  if reason := _REASONS.get(str(model_type)):
    raise UserError(f"model_type={model_type!r} cannot be imported: {reason}")
  if as_class:
    check_choice("--as", as_class, MODEL_TYPES)
  if ignored_keys and as_class in ("", model_type):
    raise UserError(
      f"--ignore-keys={','.join(ignored_keys)} is for a config of another layout, read with --as;"
      " leave it out"
    )
  if as_class and as_class != model_type:
    # Its own class may read a window that the other has not, as Mistral's does and Llama's not.
    return {"use_sliding_window": True} | config_keys.renamed(config, as_class, ignored_keys)
  if model_type not in MODEL_TYPES:
    raise UserError(
      f"model_type={model_type!r} cannot be imported: those that can are"
      f" {', '.join(MODEL_TYPES)}. {config_keys.described(config)}. If it computes what one of"
      " those does, name it with --as"
    )
  return config


def _model(config: dict, model_type: str) -> dict[str, Any]:
  """The fields of a config's `model` section."""
  is_own = model_type == OWN
  scale = config.get("routed_scale", 1.0) if is_own else 1.0
  model = {
    "position": config.get("position", "alibi") if is_own else "rope",
    "normalize_gates": _normalizes(config, model_type),
    "routed_scale": "" if scale == 1 else str(scale),
    "norm_epsilon": _number(config["rms_norm_eps"], "rms_norm_eps", "model.norm_epsilon"),
  }
  if model["position"] == "rope":
    usual = config_keys.ROPE_BASES.get(model_type, ROPE_BASE)
    base = _rope(config).get("rope_theta", config.get("rope_theta", usual))
    model["rope_base"] = _number(base, "rope_theta", "model.rope_base")
  return model


def _number(value: Any, name: str, field: str) -> float:
  """A number of a config.json that a field of ours can hold."""
  kind = ROWS[field].kind
  if problem := kind.problem(value):
    raise UserError(
      f"config.json has {name}={value!r}, which {problem}; {field} takes {kind.words()}"
    )
  return float(value)


def _normalizes(config: dict, model_type: str) -> bool:
  if model_type == MIXTRAL:
    return True
  if model_type != ERNIE:
    return bool(config.get("norm_topk_prob", False))
  least = config["moe_norm_min"]
  if least not in (NORMALIZED, RAW):
    raise UserError(
      f"config.json has moe_norm_min={least!r} and this project's model only {NORMALIZED} (gates"
      f" divided by their sum) and {RAW} (raw gates)"
    )
  return least == NORMALIZED


def _whole(config: dict, name: str, least: int = 1, default: int | None = None) -> int:
  """
  Args:
    default: for a key that is missing or null; None where there must be one.
  """
  value = config.get(name)
  value = default if value is None else value
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise UserError(
      f"config.json has {name}={value!r}; it must be a whole number of at least {least}"
    )
  return value


def _rope(config: dict) -> dict:
  """What rotary positions are made with; of two such keys transformers takes the older."""
  return config.get("rope_scaling") or config.get("rope_parameters") or {}


_OF_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def _window(config: dict, model_type: str) -> int | None:
  """How many positions a token attends to, where that is less than all."""
  is_used = model_type == MIXTRAL or config.get("use_sliding_window", False)
  window, positions = config.get("sliding_window"), config.get("max_position_embeddings")
  reaches_all = isinstance(window, int) and isinstance(positions, int) and window >= positions
  return window if is_used and not reaches_all else None


def _check_fixed(config: dict, model_type: str) -> None:
  """Refuses what our model has only one value of."""
  rope = _rope(config)
  by_layer = sorted(key for key, value in rope.items() if isinstance(value, dict))
  further = {k: v for k, v in rope.items() if k not in (*_OF_ROPE, *by_layer) and v is not None}
  part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor", 1.0)
  found = {
    "rope_parameters by kind of layer": (by_layer, []),
    "hidden_act": (config.get("hidden_act", "silu"), "silu"),
    "rope_type": (rope.get("rope_type") or rope.get("type") or "default", "default"),
    "further keys for rotary positions": (further, {}),
    "partial_rotary_factor": (part, 1.0),
    "attention_bias": (bool(config.get("attention_bias")), False),
    "mlp_bias": (bool(config.get("mlp_bias")), False),
    "use_bias": (bool(config.get("use_bias")), False),
    "layer_types": (sorted({*(config.get("layer_types") or ()), FULL}), [FULL]),
    "sliding_window": (_window(config, model_type), None),
    "quantization_config": (config.get("quantization_config"), None),
  }
  for name, (value, ours) in found.items():
    if value != ours:
      raise UserError(
        f"config.json has {name}={value!r} and this project's model only {ours!r}; a model with"
        " that value alone can be imported exactly"
      )


def _moe_layers(config: dict, model_type: str, num_layers: int) -> list[bool]:
  if model_type == LLAMA:
    return [False] * num_layers
  if model_type == MIXTRAL:
    return [True] * num_layers
  if model_type == ERNIE:
    _whole(config, "moe_layer_interval")
    _whole(config, "moe_layer_start_index", least=0)
    _whole(config, "moe_layer_end_index", least=-1)
    return ernie_moe_layers(config, num_layers)
  if model_type == OWN:
    if config.get("num_experts") and "moe_layers" not in config:
      raise UserError(
        f"config.json has num_experts={config['num_experts']!r} and no moe_layers, which lists the"
        " layers that route, from 0; add it"
      )
    return [layer in (config.get("moe_layers") or ()) for layer in range(num_layers)]
  step, dense = _whole(config, "decoder_sparse_step"), config.get("mlp_only_layers") or ()
  return [layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)]


def _experts(config: dict, model_type: str) -> dict[str, int]:
  if model_type == MIXTRAL:
    return {
      "num_experts": _whole(config, "num_local_experts"),
      "experts_per_token": _whole(config, "num_experts_per_tok"),
      "d_expert": _whole(config, "intermediate_size"),
    }
  if model_type == ERNIE:
    # transformers writes these two by either name.
    num_experts = "moe_num_experts" if "moe_num_experts" in config else "num_experts"
    chosen = "moe_k" if "moe_k" in config else "num_experts_per_tok"
    width = _whole(config, "moe_intermediate_size")
    return {
      "num_experts": _whole(config, num_experts),
      "experts_per_token": _whole(config, chosen),
      "d_expert": width,
      "d_shared": width * _whole(config, "moe_num_shared_experts", least=0),
    }
  return {
    "num_experts": _whole(config, "num_experts"),
    "experts_per_token": _whole(config, "num_experts_per_tok"),
    "d_expert": _whole(config, "moe_intermediate_size"),
    "d_shared": _whole(config, "shared_expert_intermediate_size", least=0, default=0),
  }
