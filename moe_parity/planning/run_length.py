"""One arm's run: batch, steps and tokens that spend a compute as exactly as whole steps allow."""

from __future__ import annotations

import dataclasses
import math

from moe_parity.errors import UserError
from moe_parity.planning.scaling_laws import STEP_LAW

WARMUP_SHARE = 0.1  # of a run, at most
LEAST_WARMUP = 200  # steps of a warm-up that is a share of a run, by the paper's Table 4
# A batch may leave the law by this factor to fit whole steps: the law's own optimum is that wide.
_BATCH_REACH = 1.3


@dataclasses.dataclass(frozen=True)
class RunLength:
  """num_tokens = num_steps * batch_sequences * seq_len."""

  batch_sequences: int
  num_steps: int
  num_tokens: int
  train_flops: int


def make_run_length(
  train_flops: float | int,
  flops_per_token: int,
  seq_len: int,
  *,
  batch_sequences: int = 0,
  num_steps: int = 0,
  batch_multiple: int = 1,
  num_params: int,
  tolerance: float | int,
) -> RunLength:
  """Whole steps of whole sequences whose FLOPs are nearest to `train_flops`.

  The batch is the given one; else what StepLaw asks for at these tokens, as the nearest multiple.
  Where half the tolerance is not met by rounding steps (few, large steps), the nearest multiple
  within a factor 1.3 of the law that meets it is taken, or else the one with the smallest miss.

  Args:
    train_flops: C of this arm. flops_per_token: training FLOPs a token.
    batch_sequences, num_steps: respected where not 0.
    num_params: N, for nothing but the law's input check. tolerance: share of C.
  Raises:
    UserError: not even half a step fits the compute.
  """
  sequences = train_flops / (flops_per_token * seq_len)
  if batch_sequences:
    steps = num_steps or round(sequences / batch_sequences)
    batch = batch_sequences
  elif num_steps:
    steps = num_steps
    batch = _nearest(sequences / num_steps, batch_multiple)
  else:
    law = STEP_LAW.predict(num_params=num_params, num_tokens=sequences * seq_len)
    target = law["batch_tokens"] / seq_len
    batch = _batch(target, sequences, batch_multiple, float(tolerance))
    steps = round(sequences / batch)
  if steps < 1:
    raise UserError(
      f"batch_sequences={batch} of seq_len={seq_len} is more than the "
      f"{sequences:.3g} sequences its compute buys; use a larger budget, a smaller "
      f"batch or a shorter seq_len"
    )
  tokens = steps * batch * seq_len
  return RunLength(batch, steps, tokens, tokens * flops_per_token)


def _batch(target: float, sequences: float, multiple: int, tolerance: float) -> int:
  """The batch near the law whose whole steps meet the compute."""

  def miss(batch: int) -> float:
    return abs(round(sequences / batch) * batch / sequences - 1)

  nearest = _nearest(target, multiple)
  if miss(nearest) <= tolerance / 2:
    return nearest
  lowest = max(math.ceil(target / _BATCH_REACH / multiple), 1)
  highest = max(math.floor(target * _BATCH_REACH / multiple), lowest)
  choices = {step * multiple for step in range(lowest, highest + 1)} | {nearest}
  good = [batch for batch in choices if miss(batch) <= tolerance / 2]
  if good:
    return min(good, key=lambda batch: (abs(math.log(batch / target)), batch))
  return min(choices, key=lambda batch: (miss(batch), abs(math.log(batch / target)), batch))


def _nearest(value: float, multiple: int) -> int:
  """The nearest multiple, at least one: a batch of no sequences does not exist."""
  return max(round(value / multiple), 1) * multiple


def warmup_steps(num_steps: int, most: int, share: int | float = 0) -> int:
  """Warm-up steps: `most` (2000 in StepLaw's runs), but never over a tenth of the run.

  Args:
    share: of the run, where not 0: so many steps, at least LEAST_WARMUP and at most `most`. The
      paper's Table 4 has 0.01, clip(0.01 steps, 200, 2000).
  """
  wanted = min(most, max(LEAST_WARMUP, round(share * num_steps))) if share else most
  return min(wanted, int(WARMUP_SHARE * num_steps))


def peak_learning_rate(num_params: int, num_tokens: int) -> float:
  """StepLaw's peak learning rate for all non-vocabulary parameters and the tokens seen."""
  return STEP_LAW.predict(num_params=num_params, num_tokens=num_tokens)["peak_learning_rate"]


def check_micro_batches(name: str, batch_sequences: int, micro: int) -> None:
  """Refuses `train.micro_batch_sequences` that do not divide the batch of an arm; 0 is the batch.

  Raises:
    UserError: with the largest that does.
  """
  if micro and batch_sequences % micro:
    largest = next(n for n in range(min(micro, batch_sequences), 0, -1) if not batch_sequences % n)
    raise UserError(
      f"train.micro_batch_sequences={micro} does not divide the batch of {batch_sequences}"
      f" sequences of arm {name!r}; use {largest}, or set budget.batch_multiple={micro}"
    )
