"""A model trained with moe_parity (Apache-2.0) for transformers: ALiBi, rotary or no positions,
dense or Mixture-of-Experts (arXiv 2506.12119), with a cache and generate().

Router, softmax, norms and attention scores are float32 whatever the model's dtype, as in training.
"""

import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_moe_parity import MoeParityConfig

# What transformers calls the cache: `past_key_values`, and `cache` from 5.24 on.
OUTPUTS = {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}
CACHE = "cache" if "cache" in OUTPUTS else "past_key_values"


def alibi_slopes(num_heads):
  """Slope of each head (2108.12409): of the power of two below, then every other of that above."""
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  finer = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
  return slopes + finer[: num_heads - power]


class RMSNorm(nn.Module):
  def __init__(self, width, eps):
    super().__init__()
    self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

  def forward(self, x):
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
    return (x32 * self.weight.float()).to(x.dtype)


class Mlp(nn.Module):
  def __init__(self, hidden, width):
    super().__init__()
    self.gate_proj = nn.Linear(hidden, width, bias=False)
    self.up_proj = nn.Linear(hidden, width, bias=False)
    self.down_proj = nn.Linear(width, hidden, bias=False)

  def forward(self, x):
    hidden = functional.silu(self.gate_proj(x).float()) * self.up_proj(x).float()
    return self.down_proj(hidden.to(x.dtype))


class SparseMlp(nn.Module):
  """Softmax over all experts, the K largest gates raw or divided by their sum, plus the ungated
  shared expert. The selection bias moves the choice and not the gate."""

  def __init__(self, config):
    super().__init__()
    hidden, width = config.hidden_size, config.moe_intermediate_size
    self.top_k, self.normalize = config.num_experts_per_tok, config.norm_topk_prob
    self.gate = nn.Linear(hidden, config.num_experts, bias=False)
    self.selection_bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)
    self.experts = nn.ModuleList(Mlp(hidden, width) for _ in range(config.num_experts))
    if config.routed_scale == "learned":
      self.routed_scale = nn.Parameter(torch.ones(1))
    else:
      self.routed_scale = float(config.routed_scale)
    self.shared_expert = None
    if config.shared_expert_intermediate_size:
      self.shared_expert = Mlp(hidden, config.shared_expert_intermediate_size)

  def forward(self, x):
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    probability = functional.linear(x.float(), self.gate.weight.float()).softmax(-1)
    chosen = torch.topk(probability + self.selection_bias.float(), self.top_k, dim=-1).indices
    gates = probability.gather(-1, chosen)
    if self.normalize:
      gates = gates / gates.sum(-1, keepdim=True)
    gates = gates * self.routed_scale
    out = torch.zeros_like(x, dtype=torch.float32)
    for number in chosen.unique().tolist():
      token, place = torch.where(chosen == number)
      routed = self.experts[number](x[token]).float() * gates[token, place, None]
      out.index_add_(0, token, routed)
    out = out.to(x.dtype)
    if self.shared_expert is not None:
      out = out + self.shared_expert(x)
    return out.reshape(shape)


class Attention(nn.Module):
  def __init__(self, config, layer):
    super().__init__()
    self.layer, self.heads = layer, config.num_attention_heads
    self.kv_heads, self.head_dim = config.num_key_value_heads, config.head_dim
    self.position, self.base = config.position, config.rope_theta
    hidden, width = config.hidden_size, self.heads * self.head_dim
    self.q_proj = nn.Linear(hidden, width, bias=False)
    self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
    self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
    self.o_proj = nn.Linear(width, hidden, bias=False)

  def forward(self, x, slots, attention_mask, cache):
    """`slots` [S]: where in the cache the tokens lie. Scores depend on distances only, so prompts
    that are padded in front need no positions of their own."""
    batch, length = x.shape[:2]
    q = self.q_proj(x).view(batch, length, self.heads, -1).transpose(1, 2)
    k = self.k_proj(x).view(batch, length, self.kv_heads, -1).transpose(1, 2)
    v = self.v_proj(x).view(batch, length, self.kv_heads, -1).transpose(1, 2)
    if self.position == "rope":
      q, k = self.rotate(q, slots), self.rotate(k, slots)
    if cache is not None:
      k, v = cache.update(k, v, self.layer)
    repeats = self.heads // self.kv_heads
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = (q * self.head_dim**-0.5).float() @ k.float().transpose(2, 3)
    distance = slots[:, None] - torch.arange(k.shape[2], device=x.device)[None, :]
    if self.position == "alibi":
      slopes = torch.tensor(alibi_slopes(self.heads), dtype=torch.float32, device=x.device)
      scores = scores - slopes[None, :, None, None] * distance.float()[None, None]
    visible = (distance >= 0)[None, None]
    if attention_mask is not None:
      visible = visible & attention_mask[:, None, None, : k.shape[2]].bool()
    scores = scores.masked_fill(~visible, torch.finfo(torch.float32).min)
    out = scores.softmax(-1).to(v.dtype) @ v
    return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))

  def rotate(self, x, slots):
    half = self.head_dim // 2
    frequency = self.base ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = slots.float()[:, None] * frequency[None]
    a, b = x.float().chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Layer(nn.Module):
  def __init__(self, config, layer):
    super().__init__()
    self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    self.self_attn = Attention(config, layer)
    is_moe = layer in config.moe_layers
    self.mlp = SparseMlp(config) if is_moe else Mlp(config.hidden_size, config.intermediate_size)

  def forward(self, x, slots, attention_mask, cache):
    x = x + self.self_attn(self.input_layernorm(x), slots, attention_mask, cache)
    return x + self.mlp(self.post_attention_layernorm(x))


class MoeParityPreTrainedModel(PreTrainedModel):
  config_class = MoeParityConfig
  base_model_prefix = "model"
  _no_split_modules = ["Layer"]


class MoeParityModel(MoeParityPreTrainedModel):
  def __init__(self, config):
    super().__init__(config)
    self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
    self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
    self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    self.post_init()

  def get_input_embeddings(self):
    return self.embed_tokens

  def set_input_embeddings(self, value):
    self.embed_tokens = value

  def forward(
    self,
    input_ids=None,
    attention_mask=None,
    past_key_values=None,
    inputs_embeds=None,
    use_cache=None,
    cache=None,
    **kwargs,
  ):
    cache = past_key_values if cache is None else cache
    x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    use_cache = self.config.use_cache if use_cache is None else use_cache
    if use_cache and cache is None:
      cache = DynamicCache()
    first = cache.get_seq_length() if cache is not None else 0
    slots = torch.arange(first, first + x.shape[1], device=x.device)
    for layer in self.layers:
      x = layer(x, slots, attention_mask, cache)
    return BaseModelOutputWithPast(
      last_hidden_state=self.norm(x), **{CACHE: cache if use_cache else None}
    )


class MoeParityForCausalLM(MoeParityPreTrainedModel, GenerationMixin):
  def __init__(self, config):
    super().__init__(config)
    self.model = MoeParityModel(config)
    self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    self.post_init()

  def get_input_embeddings(self):
    return self.model.embed_tokens

  def set_input_embeddings(self, value):
    self.model.embed_tokens = value

  def get_output_embeddings(self):
    return self.lm_head

  def set_output_embeddings(self, value):
    self.lm_head = value

  def forward(
    self,
    input_ids=None,
    attention_mask=None,
    past_key_values=None,
    inputs_embeds=None,
    labels=None,
    use_cache=None,
    logits_to_keep=0,
    cache=None,
    **kwargs,
  ):
    cache = past_key_values if cache is None else cache
    out = self.model(input_ids, attention_mask, cache, inputs_embeds, use_cache)
    hidden = out.last_hidden_state
    logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden).float()
    loss = None
    if labels is not None:
      targets = labels[:, 1:].reshape(-1)
      loss = functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets)
    return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: getattr(out, CACHE)})
