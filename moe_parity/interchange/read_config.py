"""A Hugging Face config.json as a shape of ours, or the field that our model cannot hold."""

from typing import Any, NamedTuple

from moe_parity.errors import UserError
from moe_parity.interchange.hf_config import NORM_EPSILON, ROPE_BASE
from moe_parity.interchange.tensors import LLAMA, MIXTRAL, OWN, QWEN2_MOE

MODEL_TYPES = (LLAMA, QWEN2_MOE, MIXTRAL, OWN)
_REASONS = {
  "olmoe": "it normalizes queries and keys (q_norm, k_norm), which this project's model does not",
  "qwen3_moe": "it normalizes queries and keys (q_norm, k_norm), which this project's model does"
  " not",
  "deepseek_v2": "its attention is latent (MLA), which this project's model lacks",
  "deepseek_v3": "its attention is latent (MLA), which this project's model lacks",
}


class Imported(NamedTuple):
  """Fields of `Architecture` and of a config's `model` section, and the positions trained on."""

  model_type: str
  shape: dict[str, Any]
  model: dict[str, Any]
  seq_len: int
  is_tied: bool


def read_config(config: dict) -> Imported:
  """
  Raises:
    UserError: the class or a field of it that our model cannot hold exactly; a field that is
      missing.
  """
  model_type = config.get("model_type")
  if model_type not in MODEL_TYPES:
    reason = _REASONS.get(str(model_type), f"those that can are {', '.join(MODEL_TYPES)}")
    raise UserError(f"model_type={model_type!r} cannot be imported: {reason}")
  _check_fixed(config, model_type)
  heads, width = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
  shape = {
    "num_layers": _whole(config, "num_hidden_layers"),
    "d_model": width,
    "num_heads": heads,
    "num_kv_heads": config.get("num_key_value_heads") or heads,
    "d_head": config.get("head_dim") or width // heads,
    "vocab_size": _whole(config, "vocab_size"),
  }
  is_own = model_type == OWN
  moe_layers = _moe_layers(config, model_type, shape["num_layers"])
  if any(moe_layers):
    shape["layout"] = "".join("M" if is_moe else "D" for is_moe in moe_layers)
    shape |= _experts(config, model_type)
  shape["d_ffn"] = 0 if all(moe_layers) else _whole(config, "intermediate_size")
  scale = config.get("routed_scale", 1.0) if is_own else 1.0
  model = {
    "position": config.get("position", "alibi") if is_own else "rope",
    "normalize_gates": model_type == MIXTRAL or bool(config.get("norm_topk_prob", False)),
    "routed_scale": "" if scale == 1 else str(scale),
  }
  positions = _whole(config, "max_position_embeddings")
  return Imported(model_type, shape, model, positions, bool(config.get("tie_word_embeddings")))


def _whole(config: dict, name: str) -> int:
  value = config.get(name)
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise UserError(f"config.json has {name}={value!r}; it must be a whole number of at least 1")
  return value


def _check_fixed(config: dict, model_type: str) -> None:
  """Refuses what our model has only one value of."""
  rope = config.get("rope_parameters") or {}
  base = rope.get("rope_theta", config.get("rope_theta", ROPE_BASE))
  scaling = config.get("rope_scaling") or {}
  kind = rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
  uses_window = config.get("use_sliding_window", model_type == MIXTRAL)
  found = {
    "hidden_act": (config.get("hidden_act", "silu"), "silu"),
    "rms_norm_eps": (config.get("rms_norm_eps", NORM_EPSILON), NORM_EPSILON),
    "rope_theta": (base, ROPE_BASE),
    "rope_type": (kind, "default"),
    "partial_rotary_factor": (config.get("partial_rotary_factor", 1.0), 1.0),
    "attention_bias": (bool(config.get("attention_bias")), False),
    "mlp_bias": (bool(config.get("mlp_bias")), False),
    "sliding_window": (config.get("sliding_window") if uses_window else None, None),
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
  if model_type == OWN:
    return [layer in config.get("moe_layers", ()) for layer in range(num_layers)]
  step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
  return [layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)]


def _experts(config: dict, model_type: str) -> dict[str, int]:
  if model_type == MIXTRAL:
    return {
      "num_experts": _whole(config, "num_local_experts"),
      "experts_per_token": _whole(config, "num_experts_per_tok"),
      "d_expert": _whole(config, "intermediate_size"),
    }
  return {
    "num_experts": _whole(config, "num_experts"),
    "experts_per_token": _whole(config, "num_experts_per_tok"),
    "d_expert": _whole(config, "moe_intermediate_size"),
    "d_shared": config.get("shared_expert_intermediate_size") or 0,
  }
