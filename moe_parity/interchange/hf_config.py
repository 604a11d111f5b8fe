"""Which Hugging Face class holds a model of ours exactly, and its config.json."""

from collections.abc import Sequence

from moe_parity.errors import UserError, check_choice
from moe_parity.fields.choices import LEARNED, PER_CHOICE
from moe_parity.interchange.tensors import ERNIE, LLAMA, NO_SHARED, OWN, QWEN2_MOE
from moe_parity.model.options import ModelOptions
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.routed_scale import constant_scale

CLASSES = {
  LLAMA: "LlamaForCausalLM",
  QWEN2_MOE: "Qwen2MoeForCausalLM",
  ERNIE: "Ernie4_5_MoeForCausalLM",
  OWN: "MoeParityForCausalLM",
}
# Ernie4.5 divides the chosen gates by their sum, or by this where the sum is less. Gates of a
# softmax sum to 1 at most, so 1 leaves them raw.
NORMALIZED, RAW = 1e-12, 1.0
REMOTE_CODE = ("configuration_moe_parity.py", "modeling_moe_parity.py")


def choose_class(
  architecture: Architecture, options: ModelOptions, has_selection_bias: bool, wanted: str = ""
) -> str:
  """The model_type to export to: a class of transformers where one holds the model exactly, else
  our own.

  Args:
    has_selection_bias: a router's selection bias is not zero.
    wanted: a model_type, or "" for the best.
  Raises:
    UserError: the wanted class cannot hold the model; says what it cannot hold.
  """
  if wanted:
    check_choice("class", wanted, CLASSES)
  if wanted == OWN:
    return OWN
  for model_type in (wanted,) if wanted else (LLAMA, QWEN2_MOE, ERNIE):
    obstacle = _obstacle(architecture, options, has_selection_bias, model_type)
    if obstacle and wanted:
      raise UserError(f"class={wanted!r} cannot hold {obstacle}; use class={OWN!r}, which can")
    if not obstacle:
      return model_type
  return OWN


def _obstacle(architecture, options, has_selection_bias, model_type) -> str:
  if (model_type == LLAMA) == architecture.is_moe:
    return "experts" if architecture.is_moe else "a model without experts"
  if options.position != "rope":
    return f"model.position={options.position!r} (it has rotary positions only)"
  if architecture.is_moe and routed_scale_of(architecture, options) != 1.0:
    return f"model.routed_scale={options.routed_scale!r}"
  if model_type == ERNIE:
    return _ernie_obstacle(architecture)
  if has_selection_bias:
    return "the selection biases of loss-free balancing (model.bias_update_rate)"
  return ""


def _ernie_obstacle(architecture: Architecture) -> str:
  a = architecture
  if a.d_shared % a.d_expert:
    return f"d_shared={a.d_shared}, which is no multiple of d_expert={a.d_expert}"
  if ernie_layers(a.moe_layers) is None:
    return f"layout={a.layout!r} (its MoE layers are every n-th one of a range of layers)"
  return ""


def ernie_layers(is_moe: Sequence[bool]) -> dict[str, int] | None:
  """The fields of an Ernie4.5 config for this arrangement of MoE layers; None if it has none.

  Layer i (from 0) is one where start <= i <= end and i + 1 is a multiple of the interval.
  """
  layers = [i for i, routes in enumerate(is_moe) if routes]
  interval = layers[1] - layers[0] if len(layers) > 1 else 1
  fields = {
    "moe_layer_start_index": layers[0],
    "moe_layer_end_index": layers[-1],
    "moe_layer_interval": interval,
  }
  return fields if ernie_moe_layers(fields, len(is_moe)) == list(is_moe) else None


def ernie_moe_layers(config: dict, num_layers: int) -> list[bool]:
  """Whether each layer is an MoE layer, by those fields; an end of -1 is the last layer."""
  start, end = config["moe_layer_start_index"], config["moe_layer_end_index"]
  end, interval = end if end >= 0 else num_layers - 1, config["moe_layer_interval"]
  return [start <= i <= end and (i + 1) % interval == 0 for i in range(num_layers)]


def routed_scale_of(architecture: Architecture, options: ModelOptions) -> float | str:
  """The constant, or "learned"."""
  if options.routed_scale == LEARNED:
    return LEARNED
  if options.routed_scale == PER_CHOICE:
    return architecture.num_experts / architecture.experts_per_token
  return constant_scale(options.routed_scale)


def make_config(
  architecture: Architecture,
  options: ModelOptions,
  model_type: str,
  *,
  seq_len: int,
  ids: dict[str, int],
) -> dict:
  """config.json.

  Args:
    seq_len: positions the model was trained on.
    ids: bos_token_id, eos_token_id, pad_token_id.
  """
  a = architecture
  config = {
    "architectures": [CLASSES[model_type]],
    "model_type": model_type,
    "vocab_size": a.vocab_size,
    "hidden_size": a.d_model,
    "num_hidden_layers": a.num_layers,
    "num_attention_heads": a.num_heads,
    "num_key_value_heads": a.num_kv_heads,
    "head_dim": a.d_head,
    "hidden_act": "silu",
    "max_position_embeddings": seq_len,
    "rms_norm_eps": options.norm_epsilon,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "float32",
    **ids,
  }
  if options.position == "rope":  # transformers 5 reads the first, 4 the second
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": options.rope_base}
    config["rope_theta"] = options.rope_base
  # A width of a kind of layer that a model lacks is not used by any class, but must be a number.
  config["intermediate_size"] = a.d_ffn or a.d_expert
  if model_type == LLAMA:
    return config | {"attention_bias": False, "mlp_bias": False}
  if model_type == QWEN2_MOE:
    return config | _qwen2_moe(architecture, options)
  if model_type == ERNIE:
    return config | _ernie(architecture, options)
  return config | _own(architecture, options)


def _experts(a: Architecture, options: ModelOptions) -> dict:
  return {
    "num_experts": a.num_experts,
    "num_experts_per_tok": a.experts_per_token,
    "moe_intermediate_size": a.d_expert,
    "shared_expert_intermediate_size": a.d_shared,
    "norm_topk_prob": options.normalize_gates,
  }


def _loop_over_experts(a: Architecture) -> dict:
  # torch's grouped product takes rows of a multiple of 16 bytes, bfloat16 included.
  is_even = a.d_model % 8 == 0 and a.d_expert % 8 == 0
  return {} if is_even else {"experts_implementation": "eager"}


def _qwen2_moe(a: Architecture, options: ModelOptions) -> dict:
  return (
    _experts(a, options)
    | _loop_over_experts(a)
    | {
      "shared_expert_intermediate_size": a.d_shared or NO_SHARED,
      "decoder_sparse_step": 1,
      "mlp_only_layers": [layer for layer, is_moe in enumerate(a.moe_layers) if not is_moe],
      "qkv_bias": True,  # of zeros: vLLM's class always has them
      "router_aux_loss_coef": 0.0,
      "output_router_logits": False,
      "use_sliding_window": False,
    }
  )


def _ernie(a: Architecture, options: ModelOptions) -> dict:
  layers = ernie_layers(a.moe_layers)
  assert layers is not None  # `choose_class` refused the others
  return (
    _loop_over_experts(a)
    | layers
    | {
      "moe_num_experts": a.num_experts,
      "moe_k": a.experts_per_token,
      "moe_intermediate_size": a.d_expert,
      "moe_num_shared_experts": a.d_shared // a.d_expert,
      "moe_norm_min": NORMALIZED if options.normalize_gates else RAW,
      "moe_use_aux_free": True,
      "use_bias": False,
      "router_aux_loss_coef": 0.0,
      "output_router_logits": False,
    }
  )


def _own(a: Architecture, options: ModelOptions) -> dict:
  configuration, modeling = (name.removesuffix(".py") for name in REMOTE_CODE)
  return _experts(a, options) | {
    "auto_map": {
      "AutoConfig": f"{configuration}.MoeParityConfig",
      "AutoModel": f"{modeling}.MoeParityModel",
      "AutoModelForCausalLM": f"{modeling}.{CLASSES[OWN]}",
    },
    "moe_layers": [layer for layer, is_moe in enumerate(a.moe_layers) if is_moe],
    "position": options.position,
    "routed_scale": routed_scale_of(a, options) if a.is_moe else 1.0,
  }
