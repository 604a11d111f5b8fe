"""Which experts each token of a text goes to, layer by layer, and with which gates."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.model.moe import MoE
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import Transformer, abstract_model
from moe_parity.planning.architecture import Architecture


def choices_of_tokens(
  architecture: Architecture,
  options: ModelOptions,
  params: nnx.State,
  buffers: nnx.State,
  ids: np.ndarray,
  window: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Chosen experts and their gates for every token of a text, on one device.

  The text is read in windows of `window` tokens, each by itself, as it is scored. Nothing is
  dropped beyond a capacity.

  Args:
    ids: int [N], at least one token.
  Returns:
    experts int32 [N, MoE layers, K], the largest gate plus selection bias first; gates float32 of
    the same shape, as they weigh the experts' outputs.
  Raises:
    UserError: a dense architecture; no token.
  """
  if not architecture.is_moe:
    raise UserError("a dense model has no router; open an MoE run")
  if not len(ids):
    raise UserError("the text has no token; give at least one character")
  graph = abstract_model(architecture, options.for_inference())[0]
  num_windows = -(-len(ids) // window)
  inputs_BS = np.zeros((num_windows, window), np.int32)
  inputs_BS.reshape(-1)[: len(ids)] = ids

  @jax.jit
  def choose(params, buffers, inputs_BS):
    return batch_choices(nnx.merge(graph, params, buffers), inputs_BS)

  expert_TLK, gate_TLK = jax.device_get(choose(params, buffers, inputs_BS))
  return expert_TLK[: len(ids)], gate_TLK[: len(ids)]


def batch_choices(
  model: Transformer, inputs_BS: Int[Array, "B S"]
) -> tuple[Int[Array, "T L K"], Float[Array, "T L K"]]:
  """Chosen experts and gates of every token, sequences end to end; L counts MoE layers.

  Each layer's choices are its own `MoE.choices`, of what its own attention and norm give.
  """
  batch, x_TD, found = inputs_BS.shape[0], model.embed(inputs_BS), []
  for segment in model.segments:
    x_TD, chosen = segment.scan_layers(_apply_and_choose, x_TD, batch)
    if chosen:  # [repeats, one split] of each layer of the pattern -> [repeats * layers]
      found.append([jnp.stack(of_layers, 1) for of_layers in zip(*chosen, strict=True)])
  experts, gates = (
    jnp.concatenate([a.reshape(-1, *a.shape[3:]) for a in arrays])
    for arrays in zip(*found, strict=True)
  )
  return jnp.swapaxes(experts, 0, 1), jnp.swapaxes(gates, 0, 1)


def _apply_and_choose(layers, x_TD, batch, extra):
  chosen = []
  for layer in layers:
    if isinstance(layer.feedforward, MoE):
      y_TD, _ = layer.attention(layer.attention_norm(x_TD), batch)
      _, expert_TK, gate_TK, _ = layer.feedforward.choices(layer.feedforward_norm(x_TD + y_TD))
      chosen.append((expert_TK.astype(jnp.int32), gate_TK))
    x_TD, _ = layer(x_TD, batch)
  return x_TD, chosen
