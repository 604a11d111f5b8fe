"""The FLOPs XLA counts in the compiled program are those the planner charges for."""

import jax
import numpy as np
import pytest
from flax import nnx

from moe_parity.experts import expert_ffn, padded_overflow
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.accounting import account
from moe_parity.planning.architecture import Architecture

B, S = 8, 128
SHAPE = dict(d_model=512, num_heads=2, d_head=256, vocab_size=64)
CASES = {
  # Layouts whose runs are one layer long: XLA counts the body of a longer scan only once.
  "dense": Architecture(num_layers=1, d_ffn=1536, **SHAPE),
  "mixed": Architecture(
    num_layers=3, layout="DMD", d_ffn=1536, num_experts=2, experts_per_token=2, d_expert=512,
    d_shared=128, **SHAPE,
  ),
  "grouped queries": Architecture(
    num_layers=1, d_model=256, num_heads=4, num_kv_heads=2, d_head=64, d_ffn=1536, vocab_size=64,
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_xla_counts_the_planned_forward_flops_within_two_per_cent(name, monkeypatch):
  # Every token chooses both experts, so T slots hold them exactly, and the loop over what overflows
  # is never entered: XLA would count its body once all the same.
  monkeypatch.setattr(expert_ffn, "slots_for", lambda tokens, k, num_experts: tokens)
  monkeypatch.setattr(padded_overflow, "forward", lambda y_TD, *_: y_TD)
  architecture = CASES[name]
  graph, params, buffers = abstract_model(architecture, ModelOptions(position="none"))

  def forward(params, buffers, inputs):
    return nnx.merge(graph, params, buffers).hidden(inputs)[0]

  inputs = jax.ShapeDtypeStruct((B, S), np.int32)
  counted = jax.jit(forward).lower(params, buffers, inputs).compile().cost_analysis()["flops"]
  planned = account(architecture, S, "exact").forward_flops_per_token * B * S
  assert counted == pytest.approx(planned, rel=0.02)
