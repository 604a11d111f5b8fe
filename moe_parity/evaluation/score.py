"""A model's logits as the scoring function that `bits.evaluate` takes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_parity.evaluation.bits import Score


def scorer(logits_fn: Callable[[Any, jax.Array], jax.Array]) -> Callable[[Any], Score]:
  """Compiles a model once; the result takes parameters and gives a `Score` for them.

  Args:
    logits_fn: (parameters, int32 tokens [B, S]) -> logits [B, S, V] of any float type; the softmax
      over them is float32.
  """

  @jax.jit
  def nats(parameters: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    logits = logits_fn(parameters, inputs).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen

  def with_parameters(parameters: Any) -> Score:
    return lambda inputs, targets, mask: np.asarray(nats(parameters, inputs, targets))

  return with_parameters
