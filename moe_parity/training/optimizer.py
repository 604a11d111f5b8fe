"""The paper's optimizer: AdamW, clipped, warmed up, cosine to a fixed small rate (its Table 4)."""

import dataclasses

import jax
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


def learning_rate(options: OptimizerOptions) -> optax.Schedule:
  """Step (from 0) -> rate: linear over `warmup_steps`, then half a cosine to the final rate.

  The first step's rate is peak / warmup_steps, the last step's is one before the final rate.
  """
  warmup = max(1, options.warmup_steps)
  return optax.schedules.join_schedules(
    [
      optax.schedules.linear_schedule(
        options.peak_learning_rate / warmup, options.peak_learning_rate, max(1, warmup - 1)
      ),
      optax.schedules.cosine_decay_schedule(
        options.peak_learning_rate,
        max(1, options.num_steps - warmup),
        alpha=options.final_learning_rate / options.peak_learning_rate,
      ),
    ],
    [warmup],
  )


def is_decayed(params) -> object:
  """True for every leaf except norm scales. By name, because stacked scales have two axes too."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "scale" not in jax.tree_util.keystr(path), params
  )


def make_optimizer(options: OptimizerOptions) -> optax.GradientTransformation:
  """Clip, AdamW with decay on matrices only, scheduled rate."""
  return optax.chain(
    optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity(),
    optax.adamw(
      learning_rate(options),
      b1=options.b1,
      b2=options.b2,
      eps=options.epsilon,
      weight_decay=options.weight_decay,
      mask=is_decayed,
    ),
  )
