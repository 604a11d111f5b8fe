"""Small models whose every axis has another size, and their weights laid out for the reference."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import Transformer, abstract_model
from moe_parity.planning.architecture import Architecture

VOCAB = 37


def dense(**fields) -> Architecture:
  shape = dict(num_layers=3, d_model=12, num_heads=3, d_head=6, d_ffn=20, vocab_size=VOCAB)
  return Architecture(**(shape | fields))


def moe(**fields) -> Architecture:
  shape = dict(
    num_layers=3, d_model=12, num_heads=3, d_head=6, d_ffn=20, vocab_size=VOCAB, layout="1dense",
    num_experts=7, experts_per_token=2, d_expert=10, d_shared=14,
  )  # fmt: skip
  return Architecture(**(shape | fields))


def build(architecture, seed=0, **options) -> Transformer:
  """A model with weights well away from their tidy start: routers that disagree, biased choice.

  Drawn with NumPy on the host: no compile.
  """
  graph, params, rest = abstract_model(architecture, ModelOptions(**options))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    if "scale" in name:
      return jnp.asarray(1 + 0.2 * rng.normal(size=leaf.shape), leaf.dtype)
    return jnp.asarray(0.35 * rng.normal(size=leaf.shape), leaf.dtype)

  params, rest = (jax.tree_util.tree_map_with_path(draw, state) for state in (params, rest))
  return nnx.merge(graph, params, rest)


def tokens(batch=3, seq_len=8, seed=0):
  rows = np.random.default_rng(seed).integers(0, VOCAB, (batch, seq_len + 1)).astype(np.int32)
  return rows[:, :-1], rows[:, 1:]


def reference_weights(model: Transformer):
  """(outer weights, one dict a layer in order), float64."""

  def array(x):
    return np.asarray(x[...], np.float64)

  def swiglu(f, i):
    return {name: array(getattr(f, name))[i] for name in ("gate", "up", "down")}

  layers = []
  for segment in model.segments:
    repeats = segment.layers[0].attention_norm.scale.shape[0]
    for i in range(repeats):
      for layer in segment.layers:
        a, f = layer.attention, layer.feedforward
        if hasattr(f, "router"):
          names = ("router", "selection_bias", "experts_in", "experts_out")
          feedforward = {name: array(getattr(f, name))[i] for name in names}
          if f.shared is not None:
            feedforward["shared"] = swiglu(f.shared, i)
        else:
          feedforward = swiglu(f, i)
        layers.append(
          {
            "attention_norm": array(layer.attention_norm.scale)[i],
            "feedforward_norm": array(layer.feedforward_norm.scale)[i],
            "attention": {n: array(getattr(a, n))[i] for n in ("query", "key", "value", "out")},
            "feedforward": feedforward,
          }
        )
  outer = {"embedding": array(model.embedding), "head": array(model.head)}
  return outer | {"final_norm": array(model.final_norm.scale)}, layers
