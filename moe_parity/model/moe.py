"""A Mixture-of-Experts layer: router, routed experts, shared expert, routing statistics.

The paper: gates g = softmax(W x), the K largest unchanged (v2 eq. 11-14) or divided by their sum
(eq. 15); y = sum of g_i E_i(x) over the chosen experts, plus an ungated shared expert.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_parity.experts.assignments import drop_beyond_capacity
from moe_parity.experts.expert_ffn import expert_ffn, implementation_for
from moe_parity.experts.expert_parallel import expert_parallel_ffn
from moe_parity.experts.looped_ffn import FEW_ASSIGNMENTS, looped_ffn
from moe_parity.fields.choices import LEARNED, PER_CHOICE
from moe_parity.kernels.common import platform
from moe_parity.model.feedforward import FeedForward
from moe_parity.model.init import param
from moe_parity.model.options import ModelOptions
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.expert_parallel import ExpertParallelShape, default_token_dispatch
from moe_parity.planning.routed_scale import constant_scale
from moe_parity.sharding import mesh


class SelectionBias(nnx.Variable):
  """Added to the router's probabilities for choosing only (2408.15664). Moved by the load, once an
  optimizer step, never by the gradient: so it is no `nnx.Param` and not part of N."""


class RoutingStats(NamedTuple):
  """Routing of T tokens in one layer, as averages, so that equal batches can be averaged again.

  Attributes:
    load_E: share of the T*K assignments each expert got; sums to 1.
    probability_E: mean router probability; sums to 1. The balance loss's gradient flows here.
    squared_logsumexp: mean of logsumexp(logits)^2, the router z-loss (2202.08906).
    entropy: mean entropy of a token's router distribution, in nats.
    drop_share: share of assignments that no expert computed.
    gate_sum: mean over tokens of the sum of the K gates, after `routed_scale`.
    mean_squares_3: of the elements of the routed sum, of the shared expert's output and of the
      residual stream that they are added to; None but where `ModelOptions.is_probing`.
  """

  load_E: jax.Array
  probability_E: jax.Array
  squared_logsumexp: jax.Array
  entropy: jax.Array
  drop_share: jax.Array
  gate_sum: jax.Array
  mean_squares_3: jax.Array | None = None


def balance_loss(
  load_LE: Float[Array, "L E"], probability_LE: Float[Array, "L E"]
) -> Float[Array, " L"]:
  """E * sum_i f_i P_i per layer: 1 at perfect balance whatever K (f counts T*K assignments).

  The paper's eq. 16 as printed would give K at perfect balance; its Table 6 (1.355 ... 1.452 at
  K = 2 and 4) only fits f divided by K. f carries no gradient.
  """
  return load_LE.shape[-1] * jnp.sum(jax.lax.stop_gradient(load_LE) * probability_LE, axis=-1)


def router_logits(x_TD: Float[Array, "T D"], router_DE: Float[Array, "D E"]) -> Float[Array, "T E"]:
  """Router logits, in float32 whatever dtype the model computes in: rounding changes the choice.

  A narrower x is saved for the backward pass as it is, without a float32 copy. For a float32 x
  there is no copy to avoid, and `checkpoint` would only cost time.
  """
  if x_TD.dtype == jnp.float32:
    return _router_product(x_TD, router_DE)
  return jax.checkpoint(_router_product, prevent_cse=False)(x_TD, router_DE)


def _router_product(x_TD, router_DE):
  return jnp.matmul(x_TD.astype(jnp.float32), router_DE, precision=jax.lax.Precision.HIGHEST)


def route(
  logit_TE: Float[Array, "T E"],
  bias_E: Float[Array, " E"],
  experts_per_token: int,
  normalize: bool,
) -> tuple[Int[Array, "T K"], Float[Array, "T K"], Float[Array, "T E"]]:
  """Chosen experts (distinct within a row), their gates, and all probabilities; float32.

  Softmax before top-k. `bias_E` moves the choice and not the gate.
  """
  probability_TE = jax.nn.softmax(logit_TE, axis=-1)
  _, expert_TK = jax.lax.top_k(probability_TE + bias_E[None, :], experts_per_token)
  gate_TK = jnp.take_along_axis(probability_TE, expert_TK, axis=-1)
  if normalize:
    gate_TK = gate_TK / jnp.sum(gate_TK, axis=-1, keepdims=True)
  return expert_TK, gate_TK, probability_TE


class StackedExperts(NamedTuple):
  """Routed experts of an MoE layer among those of stacked layers of its kind.

  Attributes:
    w_in, w_down: of all R * E experts, [R * E, 2, I, D] and [R * E, I, D].
    first: number among them of the layer's first expert.
  """

  w_in: Float[Array, "N 2 I D"]
  w_down: Float[Array, "N I D"]
  first: jax.Array


class MoE(nnx.Module):
  """The feed-forward part of an MoE layer.

  On a mesh it is called inside `jax.shard_map`, with a device's tokens and the unsharded weights of
  its own experts; statistics are then of these tokens.
  """

  def __init__(self, architecture: Architecture, options: ModelOptions):
    d, e, i = architecture.d_model, architecture.num_experts, architecture.d_expert
    self.experts_per_token, self.options = architecture.experts_per_token, options
    shrink = (2 * architecture.num_layers) ** -0.5
    # Small initial logits, so that the first steps route almost evenly.
    self.router = param(d, e, axes="--", scale=0.1)  # replicated: E columns, no padding
    self.constant_scale = 1.0
    if options.routed_scale == PER_CHOICE:
      self.constant_scale = e / architecture.experts_per_token
    elif options.routed_scale == LEARNED:
      self.routed_scale = nnx.Param(jnp.ones((1,), jnp.float32), axes="-")
    else:
      self.constant_scale = constant_scale(options.routed_scale)
    self.selection_bias = SelectionBias(jnp.zeros((e,), jnp.float32), axes="-")
    self.experts_in = param(e, 2, i, d, axes="E2ID", fan_in=d)
    self.experts_out = param(e, i, d, axes="EID", scale=shrink)
    self.shared = (
      FeedForward(d, architecture.d_shared, architecture.num_layers)
      if architecture.d_shared
      else None
    )

  def __call__(
    self, x_TD: Float[Array, "T D"], stacked: StackedExperts | None = None
  ) -> tuple[Float[Array, "T D"], RoutingStats, Int[Array, "T K"]]:
    """The layer's output, statistics of its routing, and the experts the router chose for each
    token (before any is dropped beyond capacity).

    Args:
      stacked: where to read experts' weights instead of from the layer's own parameters; for few
        tokens, without a gradient.
    """
    dtype = x_TD.dtype
    logit_TE, expert_TK, gate_TK, probability_TE = self.choices(x_TD)
    if stacked is not None:
      chosen_TK = expert_TK + stacked.first
      y_TD = looped_ffn(x_TD, chosen_TK, gate_TK, stacked.w_in, stacked.w_down)
      y_TD = y_TD if self.shared is None else y_TD + self.shared(x_TD)
      stats = routing_stats(logit_TE, probability_TE, expert_TK, gate_TK, jnp.zeros((), jnp.int32))
      return y_TD, stats, expert_TK
    weights = self.experts_in.astype(dtype), self.experts_out.astype(dtype)
    operands = x_TD, expert_TK, gate_TK, *weights
    y_TD, num_dropped = self.routed_and_shared(*operands, num_experts=logit_TE.shape[1])
    stats = routing_stats(logit_TE, probability_TE, expert_TK, gate_TK, num_dropped)
    if self.options.is_probing:
      stats = stats._replace(mean_squares_3=self.mean_squares(x_TD, y_TD))
    return y_TD, stats, expert_TK

  def choices(
    self, x_TD: Float[Array, "T D"]
  ) -> tuple[Float[Array, "T E"], Int[Array, "T K"], Float[Array, "T K"], Float[Array, "T E"]]:
    """Router logits, chosen experts, their gates as they weigh the sum, and all probabilities."""
    logit_TE = router_logits(x_TD, self.router[...])
    expert_TK, gate_TK, probability_TE = route(
      logit_TE, self.selection_bias[...], self.experts_per_token, self.options.normalize_gates
    )
    return logit_TE, expert_TK, self.scaled(gate_TK), probability_TE

  def scaled(self, gate_TK: Float[Array, "T K"]) -> Float[Array, "T K"]:
    """The gates times `ModelOptions.routed_scale`."""
    if self.options.routed_scale == LEARNED:
      return gate_TK * self.routed_scale[...][None, :]
    return gate_TK if self.constant_scale == 1 else gate_TK * self.constant_scale

  def mean_squares(self, x_TD, y_TD) -> Float[Array, "3"]:
    """Of the routed sum and of the shared expert's output; `Layer` fills in the residual stream's.

    The shared expert is computed again, which only a probe can afford.
    """
    shared_TD = jnp.zeros_like(y_TD) if self.shared is None else self.shared(x_TD)
    shared_TD = shared_TD.astype(jnp.float32)
    parts = (y_TD.astype(jnp.float32) - shared_TD, shared_TD)
    return jnp.stack([*(jnp.mean(jnp.square(part)) for part in parts), jnp.zeros(())])

  def stacked_experts(self, x_TD: Float[Array, "T D"]) -> Callable | None:
    """Of a module whose parameters are stacked over repeats: a function from a repeat to its
    `StackedExperts`, where these tokens should read few of them; else, and on a mesh, None."""
    repeats, num_experts = self.experts_in.shape[:2]
    num_assignments = x_TD.shape[0] * self.experts_per_token
    is_few = num_assignments <= FEW_ASSIGNMENTS * num_experts
    if not (self.options.is_decoding and is_few) or mesh.current_mesh() is not None:
      return None
    w_in, w_down = (
      w[...].astype(x_TD.dtype).reshape(repeats * num_experts, *w.shape[2:])
      for w in (self.experts_in, self.experts_out)
    )
    return lambda repeat: StackedExperts(w_in, w_down, repeat * num_experts)

  def routed_and_shared(self, x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID, *, num_experts: int):
    """The gate-weighted sum of the chosen experts' outputs plus the shared expert's; and how many
    assignments were dropped."""
    options, (num_tokens, chosen) = self.options, expert_TK.shape
    implementation = implementation_for(platform())
    if options.is_decoding and expert_TK.size <= FEW_ASSIGNMENTS * w_in_L2ID.shape[0]:
      implementation = "looped"  # on a mesh as many assignments reach a device as leave it
    if mesh.current_mesh() is None:
      num_dropped = jnp.zeros((), jnp.int32)
      if options.capacity_factor:
        shape = ExpertParallelShape(num_tokens, chosen, num_experts, 1, options.capacity_factor)
        expert_TK, num_dropped = drop_beyond_capacity(expert_TK, num_experts, shape.capacity)
      y_TD = expert_ffn(
        x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID, implementation=implementation
      )
      return y_TD if self.shared is None else y_TD + self.shared(x_TD), num_dropped
    token_dispatch = options.token_dispatch or default_token_dispatch(
      platform(),
      num_experts=num_experts,
      experts_per_token=chosen,
      num_devices=jax.lax.axis_size("expert"),
      has_ragged=mesh.supports_ragged_all_to_all(),
    )
    shared = self.shared and jax.tree_util.Partial(_call_module, *nnx.split(self.shared))
    return expert_parallel_ffn(
      x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID,
      num_experts=num_experts, token_dispatch=token_dispatch,
      capacity_factor=options.capacity_factor, implementation=implementation, overlap_fn=shared,
    )  # fmt: skip


def _call_module(graph: nnx.GraphDef, weights: nnx.State, x_TD):
  return nnx.merge(graph, weights)(x_TD)


def routing_stats(logit_TE, probability_TE, expert_TK, gate_TK, num_dropped) -> RoutingStats:
  """See `RoutingStats`; T counts the given tokens."""
  num_experts = logit_TE.shape[-1]
  count_E = jnp.zeros((num_experts,), jnp.float32).at[expert_TK.reshape(-1)].add(1.0)
  logsumexp_T = jax.nn.logsumexp(logit_TE, axis=-1)
  log_probability = logit_TE - logsumexp_T[:, None]
  entropy = -jnp.mean(jnp.sum(probability_TE * log_probability, axis=-1))
  return RoutingStats(
    load_E=count_E / expert_TK.size,
    probability_E=jnp.mean(probability_TE, axis=0),
    squared_logsumexp=jnp.mean(jnp.square(logsumexp_T)),
    entropy=jax.lax.stop_gradient(entropy),
    drop_share=num_dropped.astype(jnp.float32) / expert_TK.size,
    gate_sum=jax.lax.stop_gradient(jnp.mean(jnp.sum(gate_TK, axis=-1))),
  )
