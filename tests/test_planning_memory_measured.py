"""Planned bytes against what JAX keeps and what XLA allocates."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from moe_parity.model.layer_stack import Layer
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.memory import MAX_LOGITS_IN_MEMORY, device_memory, saved_channels
from moe_parity.training.optimizer import OptimizerOptions, make_optimizer
from moe_parity.training.state import TrainState
from moe_parity.training.step import StepOptions, make_train_step

SEQ_LEN, BATCH = 64, 6
DENSE = Architecture(
  num_layers=3, d_model=48, num_heads=4, num_kv_heads=2, d_head=20, d_ffn=112, vocab_size=272
)
MOE = Architecture(
  num_layers=3, d_model=48, num_heads=4, num_kv_heads=2, d_head=20, layout="1dense", d_ffn=112,
  num_experts=9, experts_per_token=3, d_expert=32, d_shared=96, vocab_size=272,
)  # fmt: skip


@pytest.mark.parametrize("is_moe, tolerance", [(False, 0.02), (True, 0.15)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_layer_keeps_is_what_jax_keeps(is_moe, tolerance, dtype):
  """Weights left out. Experts on a CPU have a tenth more slots than rows, and some indices."""
  layer = nnx.eval_shape(lambda: Layer(MOE, ModelOptions(dtype=dtype), is_moe))
  graph, state = nnx.split(layer)
  x = jax.ShapeDtypeStruct((BATCH * SEQ_LEN, MOE.d_model), jnp.dtype(dtype))

  def residuals(state, x):
    def run(state, x):
      y, *others = nnx.merge(graph, state)(x, BATCH)
      return y, others

    return jax.vjp(run, state, x, has_aux=True)[1]

  weights = {leaf.shape for leaf in jax.tree.leaves(state)}
  kept = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(residuals, state, x))
    if leaf.shape not in weights
  )
  item = jnp.dtype(dtype).itemsize
  planned = saved_channels(MOE, is_moe, "none", SEQ_LEN, values_per_float32=4 // item)
  assert planned * item * BATCH * SEQ_LEN == pytest.approx(kept, rel=tolerance)


@pytest.mark.parametrize(
  "architecture, remat, tolerance",
  [(DENSE, "none", 0.25), (MOE, "layer", 0.5)],
)
def test_planned_bytes_of_a_step_are_near_those_xla_allocates(architecture, remat, tolerance):
  """On a CPU, whose experts are batched over slots and copied for it; XLA's temporaries depend on
  its schedule, so near is a quarter, and a half with experts."""
  optimizer = OptimizerOptions(1e-3, 1e-5, 100, 10)
  options = ModelOptions(remat=remat)
  _, params, buffers = abstract_model(architecture, options)
  moments = jax.eval_shape(make_optimizer(optimizer).init, params)
  state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, buffers, moments)
  tokens = jax.ShapeDtypeStruct((BATCH, SEQ_LEN), jnp.int32)
  step = make_train_step(architecture, options, optimizer, StepOptions())
  measured = step.lower(state, tokens, tokens).compile().memory_analysis()
  planned = device_memory(
    architecture, SEQ_LEN, BATCH, dtype="float32", remat=remat, max_logits=MAX_LOGITS_IN_MEMORY
  )
  held = planned.parameters + planned.optimizer
  assert held == pytest.approx(measured.argument_size_in_bytes, rel=0.02)
  assert planned.total - held == pytest.approx(measured.temp_size_in_bytes, rel=tolerance)
