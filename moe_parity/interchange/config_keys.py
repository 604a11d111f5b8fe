"""Keys of a Hugging Face config.json: those that a class reads, those that change no logit, and the
names that other layouts have for the same thing."""

from collections.abc import Sequence
from typing import Any

from moe_parity.errors import UserError, suggest
from moe_parity.interchange.tensors import ERNIE, LLAMA, MIXTRAL, OWN, QWEN2_MOE

# Names of one thing in the configs of different classes, by our field; the first is the usual one.
SAME = {
  "d_model": ("hidden_size", "n_embd", "d_model", "dim"),
  "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
  "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
  "num_kv_heads": ("num_key_value_heads", "num_attention_groups", "n_kv_heads", "num_kv_heads",
                   "num_query_groups", "multi_query_group_num"),
  "d_head": ("head_dim", "kv_channels", "d_head"),
  "d_ffn": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ffn"),
  "vocab_size": ("vocab_size", "padded_vocab_size"),
  "seq_len": ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length",
              "n_positions", "n_ctx"),
  "norm_epsilon": ("rms_norm_eps", "norm_eps", "layernorm_epsilon", "layer_norm_epsilon"),
  "rope_base": ("rope_theta", "rope_base", "rotary_emb_base"),
  "num_experts": ("num_experts", "n_routed_experts", "moe_num_experts", "num_local_experts"),
  "experts_per_token": ("num_experts_per_tok", "moe_k", "moe_top_k", "moe_topk",
                        "moe_router_topk", "num_experts_per_token", "experts_per_token"),
  "d_expert": ("moe_intermediate_size", "moe_ffn_hidden_size", "d_expert"),
  "d_shared": ("shared_expert_intermediate_size", "share_expert_dim",
               "moe_shared_expert_intermediate_size", "d_shared"),
  "normalize_gates": ("norm_topk_prob", "norm_expert_weight", "moe_renormalize"),
}  # fmt: skip

_EVERY = {
  "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
  "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act",
  "rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "tie_word_embeddings",
  "attention_bias", "mlp_bias", "use_bias", "use_sliding_window", "sliding_window",
  "quantization_config", "layer_types",
}  # fmt: skip
_EXPERTS = {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
            "shared_expert_intermediate_size"}  # fmt: skip
READ = {  # the keys that decide what a class computes
  LLAMA: _EVERY,
  QWEN2_MOE: _EVERY | _EXPERTS | {"decoder_sparse_step", "mlp_only_layers"},
  MIXTRAL: _EVERY | {"num_local_experts", "num_experts_per_tok"},
  ERNIE: _EVERY | {"moe_num_experts", "moe_k", "moe_intermediate_size", "moe_num_shared_experts",
                   "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval",
                   "moe_norm_min"},
  OWN: _EVERY | _EXPERTS | {"moe_layers", "position", "routed_scale"},
}  # fmt: skip
DEFAULTS = {  # what transformers takes for a key that a config lacks
  LLAMA: {"rms_norm_eps": 1e-6},
  QWEN2_MOE: {"rms_norm_eps": 1e-6, "norm_topk_prob": False, "decoder_sparse_step": 1},
  MIXTRAL: {"rms_norm_eps": 1e-5, "num_key_value_heads": 8},
  ERNIE: {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "moe_num_shared_experts": 2,
          "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1,
          "moe_norm_min": 1e-12},
  OWN: {"rms_norm_eps": 1e-6},
}  # fmt: skip
ROPE_BASES = {MIXTRAL: 1e6, ERNIE: 5e5}  # likewise, of rope_theta; the others have 10,000
# Names, tokens, training, and how a program runs: nothing that changes a logit.
INERT = {
  "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version",
  "_name_or_path", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
  "initializer_range", "attention_dropout", "hidden_dropout", "hidden_dropout_prob",
  "attention_probs_dropout_prob", "embd_pdrop", "resid_pdrop", "attn_pdrop", "pretraining_tp",
  "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "router_jitter_noise",
  "experts_implementation", "_attn_implementation", "attn_implementation", "max_window_layers",
  "qkv_bias", "moe_use_aux_free", "moe_capacity", "num_nextn_predict_layers",
  "compression_ratio", "return_dict", "is_decoder", "ep_size",
}  # fmt: skip


def unread_keys(config: dict, model_type: str) -> list[str]:
  """Keys that are neither read for a class nor known to decide nothing."""
  return sorted(set(config) - READ[model_type] - INERT)


def renamed(config: dict, model_type: str, ignored: Sequence[str] = ()) -> dict[str, Any]:
  """A config of another layout, with the keys that a class has for the same things.

  Args:
    ignored: keys that the caller knows to decide nothing.
  Raises:
    UserError: a key that fits none of the class and is not ignored; two keys for one thing that
      differ; an ignored key that is not there.
  """
  for key in ignored:
    if key not in config:
      hint = suggest(key, config)
      raise UserError(f"--ignore-keys={key} names a key that config.json does not have{hint}")
  result: dict[str, Any] = {}
  unknown = []
  for key, value in config.items():
    if key in INERT or key in ignored:
      continue
    name = _name_in(key, model_type)
    if name is None:
      unknown.append(key)
    elif name in result and result[name] != value:
      raise UserError(
        f"config.json has {key}={value!r} and {name}={result[name]!r}, which mean the same; name"
        " the one to leave out with --ignore-keys"
      )
    else:
      result[name] = value
  if unknown:
    shown = ", ".join(f"{key}={config[key]!r}" for key in unknown[:8])
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    raise UserError(
      f"config.json has {shown}{more}, which no {model_type} model has; leave them out with"
      f" --ignore-keys={','.join(unknown[:8])} if they decide nothing, else the model does not fit"
    )
  return result | {"model_type": model_type}


def _name_in(key: str, model_type: str) -> str | None:
  """The key that a class has for what a key of another layout means."""
  if key in READ[model_type]:
    return key
  for names in SAME.values():
    if key in names:
      return next((name for name in names if name in READ[model_type]), None)
  return None


def described(config: dict) -> str:
  """What the keys of an unknown layout would be here, and which have no counterpart."""
  ours = {name: field for field, names in SAME.items() for name in names}
  known = [
    key if key == ours[key] else f"{ours[key]} ({key})"
    for key in sorted(set(config) & set(ours), key=lambda key: list(ours).index(key))
  ]
  other = sorted(set(config) - INERT - set(ours) - set().union(*READ.values()))
  words = f"Of its keys these would be {', '.join(known)}" if known else "None of its keys is known"
  return f"{words}; without a counterpart: {', '.join(other) if other else 'none'}"
