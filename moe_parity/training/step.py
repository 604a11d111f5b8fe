"""One optimizer step as one pure function: state in (donated), state and scalars out.

The batch may be split into micro-batches (`accumulation`); the result is the same step, because the
only quantity that is not a mean over sequences, the load f of the balance loss E sum f P, is taken
over the whole batch in a forward pass of its own before any gradient is computed. That pass is made
only where there are experts, a balance loss and more than one micro-batch. A capacity is the
exception: an expert has it in each micro-batch of each device, so which assignments are dropped
depends on how the batch is split.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from moe_parity.model.documents import DocumentSeparators
from moe_parity.model.moe import RoutingStats, SelectionBias, balance_loss
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import Transformer, abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh as meshes
from moe_parity.sharding.compiler_options import compiler_options
from moe_parity.training.optimizer import (
  OptimizerOptions,
  learning_rate,
  make_optimizer,
  rates_of,
)
from moe_parity.training.state import TrainState, abstract_state, shardings

# Distance from the mean load, as a share of it, at which an expert counts as balanced: loads are
# averages in float32 over micro-batches and devices, and rounding is no reason to move a bias.
BALANCED = 1e-5


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """Loss weights and micro-batches of a train step.

  Attributes:
    balance_weight, z_weight: coefficients of the balance loss (1 at perfect balance, mean over MoE
      layers) and of the router z-loss.
    bias_update_rate: u of the loss-free balancing b += u sign(mean load - load) (2408.15664), once
      an optimizer step from the whole batch's loads; 0 leaves the biases at zero.
    accumulation: micro-batches a step; must divide the batch.
    documents: separators, if attention must not cross documents; None lets it cross, and counts
      every target in the loss.
  """

  balance_weight: float = 0.01
  z_weight: float = 0.0
  bias_update_rate: float = 0.0
  accumulation: int = 1
  documents: DocumentSeparators | None = None


def objective(
  model: Transformer, inputs_BS, targets_BS, options: StepOptions, load_LE=None, num_scored=None
):
  """Cross-entropy a scored target plus weighted router losses of one (micro-)batch.

  Args:
    load_LE: loads of the whole batch for the balance loss; None takes this batch's own.
    num_scored: targets to divide by where options.documents leaves some out: of the whole batch a
      micro-batch, so that the mean over micro-batches is the mean over the batch's scored targets.
  Returns:
    the total to minimize, and (cross_entropy, RoutingStats or None).
  """
  documents = options.documents
  hidden_TD, stats = model.final_hidden(inputs_BS, documents and documents.document_ids(inputs_BS))
  targets_T = targets_BS.reshape(-1)
  if documents is None:
    mask_T, num_scored = jnp.ones(targets_T.shape, jnp.float32), targets_T.size
  else:
    mask_T = documents.loss_mask(targets_BS).reshape(-1).astype(jnp.float32)
    targets_T = jnp.maximum(targets_T, 0)  # a target that is no token has weight 0
  cross_entropy = model.weighted_nll(hidden_TD, targets_T, mask_T) / num_scored
  total = cross_entropy
  if stats is not None:
    load = stats.load_E if load_LE is None else load_LE
    total += options.balance_weight * jnp.mean(balance_loss(load, stats.probability_E))
    total += options.z_weight * jnp.mean(stats.squared_logsumexp)
  return total, (cross_entropy, stats)


class TrainStep:
  """A jitted train step, called and lowered with (state, inputs_BS, targets_BS).

  Attributes:
    rates: the learning rates, the last argument of the jitted function and of what it compiles to:
      runs that differ in nothing else share a compiled program.
  """

  def __init__(self, jitted: Callable, rates: np.ndarray):
    self.rates, self._jitted = rates, jitted

  def __call__(self, *arguments):
    return self._jitted(*arguments, self.rates)

  def lower(self, *arguments):
    """As of a jitted function; what it compiles to takes `rates` last."""
    return self._jitted.lower(*arguments, self.rates)

  def compile(self, *arguments) -> Callable:
    """The step, compiled for such arguments."""
    compiled = self.lower(*arguments).compile()
    return lambda *given: compiled(*given, self.rates)


def make_train_step(
  architecture: Architecture,
  model_options: ModelOptions,
  optimizer_options: OptimizerOptions,
  options: StepOptions,
  mesh: Mesh | None = None,
) -> TrainStep:
  """`(state, inputs_BS, targets_BS) -> (state, scalars)`, for one device or a mesh.

  Scalars are of the whole batch: loss (the total), cross_entropy (nats a scored target),
  balance_loss, z_loss, gradient_norm (before clipping), learning_rate; and, per MoE layer, load_LE,
  router_entropy_L, drop_share_L, gate_sum_L.
  """
  graph, _, _ = abstract_model(architecture, model_options)
  given_rates = rates_of(optimizer_options)
  gradients = _make_gradients(graph, options, architecture.is_moe)

  def train_step(state: TrainState, inputs_BS, targets_BS, rates):
    optimizer = make_optimizer(optimizer_options, rates)
    (loss, (cross_entropy, stats)), grads = gradients(state, inputs_BS, targets_BS)
    updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
    scalars = {
      "loss": loss,
      "cross_entropy": cross_entropy,
      "gradient_norm": optax.tree.norm(grads),
      "learning_rate": learning_rate(optimizer_options, rates)(state.step),
    }
    buffers = state.buffers
    if stats is not None:
      scalars |= routing_scalars(stats)
      if options.bias_update_rate:
        buffers = move_biases(graph, state, stats.load_E, options.bias_update_rate)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, buffers, opt_state), scalars

  if mesh is None:
    return TrainStep(jax.jit(train_step, donate_argnums=0), given_rates)

  def on_mesh(*arguments):
    with meshes.use_mesh(mesh):
      return train_step(*arguments)

  state = shardings(abstract_state(architecture, model_options, optimizer_options, mesh), mesh)
  batch, whole = meshes.batch_sharding(mesh), NamedSharding(mesh, meshes.P())
  jitted = jax.jit(
    on_mesh,
    donate_argnums=0,
    in_shardings=(state, batch, batch, whole),
    out_shardings=(state, whole),
    compiler_options=compiler_options(mesh),
  )
  return TrainStep(jitted, given_rates)


def _make_gradients(graph: nnx.GraphDef, options: StepOptions, is_moe: bool) -> Callable:
  """(state, inputs_BS, targets_BS) -> (`objective`'s results, gradients by the parameters)."""
  documents = options.documents

  def loss_of(params, buffers, inputs, targets, load_LE, num_scored):
    model = nnx.merge(graph, params, buffers)
    return objective(model, inputs, targets, options, load_LE, num_scored)

  def load_of(state, inputs):
    model = nnx.merge(graph, state.params, state.buffers)
    return model.final_hidden(inputs, documents and documents.document_ids(inputs))[1].load_E

  gradient = jax.value_and_grad(loss_of, has_aux=True)

  def gradients(state: TrainState, inputs_BS, targets_BS):
    num_scored = documents and jnp.sum(documents.loss_mask(targets_BS)) / options.accumulation
    if options.accumulation == 1:
      return gradient(state.params, state.buffers, inputs_BS, targets_BS, None, num_scored)
    micro = tuple(micro_batches(x, options.accumulation) for x in (inputs_BS, targets_BS))
    load_LE = None
    if is_moe and options.balance_weight:
      load_LE = _mean_over(lambda batch: load_of(state, batch[0]), micro)
    return _mean_over(
      lambda batch: gradient(state.params, state.buffers, *batch, load_LE, num_scored), micro
    )

  return gradients


def micro_batches(x_BS, number: int):
  """[number, B / number, S]; on a mesh every micro-batch is sharded over all devices."""
  return meshes.constrain(x_BS.reshape(number, -1, x_BS.shape[-1]), "-BS")


def _mean_over(function, micro_batches):
  """Mean of a pytree-valued function over the leading axis, one micro-batch in memory at a time."""
  num = jax.tree.leaves(micro_batches)[0].shape[0]
  first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], micro_batches))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), first)

  def add(total, batch):
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32) / num, total, function(batch)), None

  return jax.lax.scan(add, zeros, micro_batches)[0]


def routing_scalars(stats: RoutingStats) -> dict[str, jax.Array]:
  """What is logged of a whole batch's routing (leading axis: MoE layers)."""
  return {
    "balance_loss": jnp.mean(balance_loss(stats.load_E, stats.probability_E)),
    "z_loss": jnp.mean(stats.squared_logsumexp),
    "load_LE": stats.load_E,
    "router_entropy_L": stats.entropy,
    "drop_share_L": stats.drop_share,
    "gate_sum_L": stats.gate_sum,
  }


def move_biases(graph, state: TrainState, load_LE, rate: float) -> nnx.State:
  """Selection biases after one update: `rate` up for underused experts, down for overused ones.

  `load_LE` is in the order of the layers, which in a segment is (repeat, layer of the pattern);
  parameters are stacked by layer of the pattern.
  """
  model = nnx.merge(graph, state.params, state.buffers)
  start = 0
  for segment in model.segments:
    moe = [layer.feedforward for layer in segment.layers if hasattr(layer.feedforward, "router")]
    if not moe:
      continue
    repeats, num_experts = moe[0].selection_bias.shape
    rows = load_LE[start : start + repeats * len(moe)].reshape(repeats, len(moe), num_experts)
    start += repeats * len(moe)
    for index, layer in enumerate(moe):
      missing = 1.0 - num_experts * rows[:, index]  # as a share of the mean load
      direction = jnp.where(jnp.abs(missing) < BALANCED, 0.0, jnp.sign(missing))
      layer.selection_bias[...] = layer.selection_bias[...] + rate * direction
  return nnx.split(model, nnx.Param, SelectionBias)[2]
