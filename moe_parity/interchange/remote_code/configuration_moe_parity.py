"""Configuration of a model trained with moe_parity (Apache-2.0), for transformers."""

from transformers import PretrainedConfig


class MoeParityConfig(PretrainedConfig):
  """A decoder of pre-norm layers: causal attention, then SwiGLU or routed experts.

  Beyond the usual names:
    position: "alibi", "rope" or "none".
    moe_layers: numbers of the layers that route, from 0; all others are dense.
    shared_expert_intermediate_size: width of the ungated shared expert, 0 for none.
    norm_topk_prob: whether the chosen gates are divided by their sum.
    routed_scale: what the routed experts' sum is multiplied by; "learned": one number a layer.
  """

  model_type = "moe_parity"
  keys_to_ignore_at_inference = ["past_key_values"]

  def __init__(
    self,
    vocab_size=272,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=None,
    head_dim=None,
    intermediate_size=256,
    position="alibi",
    moe_layers=(),
    num_experts=0,
    num_experts_per_tok=0,
    moe_intermediate_size=0,
    shared_expert_intermediate_size=0,
    norm_topk_prob=False,
    routed_scale=1.0,
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    initializer_range=0.02,
    use_cache=True,
    **kwargs,
  ):
    self.vocab_size = vocab_size
    self.hidden_size = hidden_size
    self.num_hidden_layers = num_hidden_layers
    self.num_attention_heads = num_attention_heads
    self.num_key_value_heads = num_key_value_heads or num_attention_heads
    self.head_dim = head_dim or hidden_size // num_attention_heads
    self.intermediate_size = intermediate_size
    self.position = position
    self.moe_layers = list(moe_layers)
    self.num_experts = num_experts
    self.num_experts_per_tok = num_experts_per_tok
    self.moe_intermediate_size = moe_intermediate_size
    self.shared_expert_intermediate_size = shared_expert_intermediate_size
    self.norm_topk_prob = norm_topk_prob
    self.routed_scale = routed_scale
    self.max_position_embeddings = max_position_embeddings
    self.rms_norm_eps = rms_norm_eps
    self.rope_theta = rope_theta
    self.initializer_range = initializer_range
    self.use_cache = use_cache
    kwargs.setdefault("tie_word_embeddings", False)
    super().__init__(**kwargs)
