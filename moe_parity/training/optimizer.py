"""The paper's optimizer: AdamW, clipped, warmed up, cosine to a fixed small rate (its Table 4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """AdamW settings: the paper's Table 4; betas and epsilon, which it leaves open, as usual.

  Attributes:
    peak_learning_rate, final_learning_rate: Adam step sizes at the end of warm-up and of the run.
    num_steps, warmup_steps: optimizer steps of the run, and of the linear rise from zero.
    weight_decay: decoupled (times the learning rate), on matrices; norm scales are not decayed.
    clip_norm: the largest global norm of the gradient; larger ones are scaled down to it; 0 scales
      nothing.
  """

  peak_learning_rate: float
  final_learning_rate: float
  num_steps: int
  warmup_steps: int
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float = 1.0


def rates_of(options: OptimizerOptions) -> np.ndarray:
  """All that `learning_rate` takes from the options' learning rates, float32 [4]: the first
  rate minus the peak, the peak, and the shares of it that decay and that stay."""
  peak, warmup = options.peak_learning_rate, max(1, options.warmup_steps)
  stays = options.final_learning_rate / peak
  return np.array([peak / warmup - peak, peak, 1 - stays, stays], np.float32)


def learning_rate(
  options: OptimizerOptions, rates: jax.Array | np.ndarray | None = None
) -> optax.Schedule:
  """Step (from 0) -> rate: linear over `warmup_steps`, then half a cosine to the final rate.

  The first step's rate is peak / warmup_steps, the last step's is one before the final rate.

  Args:
    options: its numbers of steps, and its learning rates where `rates` are None.
    rates: as `rates_of` gives them; they may be an argument of a jitted function.
  """
  # Optax's schedules, which this equals, take differences of rates while they are traced: of
  # arguments in float32, so that a run would not end as the same run did with constants.
  first, peak, decays, stays = rates_of(options) if rates is None else rates
  warmup = max(1, options.warmup_steps)
  rising, falling = max(1, warmup - 1), float(max(1, options.num_steps - warmup))

  def schedule(step):
    to_go = 1 - jnp.clip(step, 0, rising) / rising
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step - warmup, falling) / falling))
    return jnp.where(step < warmup, first * to_go + peak, peak * (decays * cosine + stays))

  return schedule


def is_decayed(params) -> object:
  """True for every leaf except norm scales. By name, because stacked scales have two axes too."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "scale" not in jax.tree_util.keystr(path), params
  )


def make_optimizer(
  options: OptimizerOptions, rates: jax.Array | np.ndarray | None = None
) -> optax.GradientTransformation:
  """Clip, AdamW with decay on matrices only, scheduled rate.

  Args:
    rates: as for `learning_rate`.
  """
  return optax.chain(
    optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity(),
    optax.adamw(
      learning_rate(options, rates),
      b1=options.b1,
      b2=options.b2,
      eps=options.epsilon,
      weight_decay=options.weight_decay,
      mask=is_decayed,
    ),
  )
