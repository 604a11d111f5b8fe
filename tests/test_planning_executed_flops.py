"""The matrix products of the traced and of the compiled program are those the planner charges for.

Both counts are exact, so the comparison is: not one multiply-add more or less.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity.experts import expert_ffn
from moe_parity.kernels.flash_attention import flash_attention
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.accounting import ATTENTION_BLOCK, cost_of, query_block
from moe_parity.planning.architecture import Architecture
from moe_parity.training.step import StepOptions, objective
from tests.helpers import product_flops

B, S = 3, 40
SHAPE = dict(d_model=24, num_heads=3, d_head=10, vocab_size=37)
EXPERTS = dict(num_experts=5, experts_per_token=2, d_expert=14, d_shared=18)
CASES = {
  "dense": Architecture(num_layers=2, d_ffn=36, **SHAPE),
  "grouped queries": Architecture(num_layers=2, num_kv_heads=1, d_ffn=36, **SHAPE),
  "1dense": Architecture(num_layers=4, layout="1dense", d_ffn=36, **SHAPE, **EXPERTS),
  "interleave": Architecture(num_layers=4, layout="interleave", d_ffn=36, **SHAPE, **EXPERTS),
}
SLOTS = B * S * 2 // 5  # of an expert: T K / E, so that every slot is needed


def program(architecture, attention_block, backward):
  """(function, abstract arguments): the loss a step minimizes, or that and all its gradients."""
  options = ModelOptions(attention_block=attention_block)
  graph, params, buffers = abstract_model(architecture, options)

  def loss(params, buffers, inputs, targets):
    return objective(nnx.merge(graph, params, buffers), inputs, targets, StepOptions())

  rows = jax.ShapeDtypeStruct((B, S), np.int32)
  function = jax.value_and_grad(loss, has_aux=True) if backward else loss
  return function, (params, buffers, rows, rows)


def planned(architecture, attention_block, backward):
  cost = cost_of(architecture, S, "executed", attention_block)
  return (cost.train_flops_per_token if backward else cost.forward_flops_per_token) * B * S


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("block", [512, 20, 8])
@pytest.mark.parametrize("name", CASES)
def test_traced_products_are_the_executed_flops(name, block, backward, monkeypatch):
  monkeypatch.setattr(expert_ffn, "slots_per_expert", lambda *_: SLOTS)
  function, args = program(CASES[name], block, backward)
  assert product_flops.of_trace(function, *args) == planned(CASES[name], block, backward)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", ["dense", "1dense"])
def test_compiled_products_are_the_executed_flops(name, backward, monkeypatch):
  monkeypatch.setattr(expert_ffn, "slots_per_expert", lambda *_: SLOTS)
  function, args = program(CASES[name], 20, backward)
  text = jax.jit(function).lower(*args).compile().as_text()
  assert product_flops.of_compiled(text) == planned(CASES[name], 20, backward)


def test_unneeded_slots_are_all_that_experts_cost_beyond_it():
  """Left to itself an expert has more slots than its mean load; the rest is multiplied by zero."""
  architecture = CASES["1dense"]
  function, args = program(architecture, 512, True)
  slots = expert_ffn.slots_per_expert(B * S, 2, 5)
  unneeded = 5 * slots - B * S * 2
  assert unneeded > 0
  extra = 3 * 6 * architecture.d_model * architecture.d_expert * architecture.num_moe_layers
  counted = product_flops.of_trace(function, *args)
  assert counted == planned(architecture, 512, True) + extra * unneeded


def test_what_the_backward_pass_computes_again_is_left_out():
  architecture = CASES["dense"]
  graph, params, buffers = abstract_model(architecture, ModelOptions(remat="layer"))

  def loss(params, inputs, targets):
    return objective(nnx.merge(graph, params, buffers), inputs, targets, StepOptions())[0]

  rows = jax.ShapeDtypeStruct((B, S), np.int32)
  counted = product_flops.of_trace(jax.grad(loss), params, rows, rows)
  assert counted > planned(architecture, 512, True)


@pytest.mark.parametrize("seq_len, chunk", [(512, 512), (1024, 512), (256, 256), (128, 128)])
def test_a_tpus_kernel_computes_the_scores_that_are_counted(seq_len, chunk):
  """Its own estimate, of the forward kernel: two products over the pairs of chunks it visits."""
  heads, width = 3, 128
  q = jax.ShapeDtypeStruct((2, seq_len, heads, width), np.float32)
  jaxpr = jax.make_jaxpr(lambda q: flash_attention(q, q, q, None))(q)
  shape = Architecture(num_layers=1, d_model=8, num_heads=heads, d_head=width, d_ffn=8)
  cost = cost_of(shape, seq_len, "executed", ATTENTION_BLOCK)
  assert query_block(seq_len, ATTENTION_BLOCK) == chunk
  counted = product_flops.of_kernels(jaxpr.jaxpr)
  assert counted == cost.breakdown["forward.scores"] * 2 * seq_len


def test_the_count_sees_a_product_inside_a_scan_and_a_branch():
  def function(x, flag):
    x = jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]
    return jax.lax.cond(flag, lambda x: x @ x, lambda x: x, x)

  counted = product_flops.of_trace(function, jnp.ones((3, 3)), True)
  assert counted == 8 * 2 * 27
