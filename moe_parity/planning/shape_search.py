"""Searches integer shapes: the objective of `solver`, over depth, width and experts.

Depth and width (`dw` below, see `depth_width`) come first, in order of their distance from the
wanted ratios; within them the experts' width, number and choice are searched. The objective,
smallest wins:

    |N / target - 1| / params_tolerance + 3 |r_a - target| / RATE_TOLERANCE
  + 10 |ln(ratio / target)| for every given ratio, 5 |ln| for every preferred one
  + 0.05 |d_ffn / wanted - 1| of the dense layers of an MoE, which take up what N leaves over; 1
    instead of 0.05 for what goes beyond 10 %
  + 0.0005 a factor of two missing from d_expert, d_ffn (up to 128) and num_experts (up to 8)

with both misses inside their tolerance. So ratios choose depth and width, accuracy the experts, and
round sizes break ties. Among equals the first in the order of depth, width, experts wins.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from moe_parity.planning.accounting import counts_router_and_norms
from moe_parity.planning.depth_width import GIVEN_WEIGHT, DepthWidth, depth_widths
from moe_parity.planning.targets import RATE_TOLERANCE, RATIO_TOLERANCE, Targets, ratio_distance

# Where no granularity is given, d_expert keeps around d_model / 4 like the paper's fine experts
# (0.18 to 0.25 of d_model), so that arms of different rates do not differ in granularity as well.
# Each window is (lowest, highest) as shares of d_model and at least so many channels; the next one
# is tried only where the one before has no shape. None is any width.
_FINE = ((1 / 6, 24), (1 / 3, 64))
_WIDER = ((1 / 16, 16), (2 / 3, 128))
_MOST_EXPERTS = 1024  # more a layer only where they are asked for
_ROUND = 0.0005
_RATE = 3.0
_LEEWAY = 0.00028  # share of N that dense layers may miss for the rate; the paper misses as much


# Factors of two that a width lacks of 128: 0 for 256, 2 for 352 = 11 x 32; by its remainder.
_ROUGHNESS = tuple(8 - math.gcd(remainder, 128).bit_length() for remainder in range(128))


class Candidate(NamedTuple):
  """A shape under consideration, ordered by its objective."""

  objective: float
  dw: DepthWidth
  d_ffn: int
  num_experts: int
  experts_per_token: int
  d_expert: int
  d_shared: int
  num_params: int
  num_active_params: int


@functools.lru_cache(maxsize=4096)
def search(targets: Targets) -> Candidate | None:
  """The best candidate within tolerance, None where there is none."""
  fine = targets.kind == "moe" and not (
    targets.granularity or targets.d_expert or targets.experts_per_token or targets.num_experts
  )
  for window, is_relaxed in itertools.product(
    (_FINE, _WIDER, None) if fine else (None,), (False, True)
  ):
    best = None
    for dw in depth_widths(targets, is_relaxed):
      if best is not None and dw.penalty >= best.objective:
        break  # they come in order of their penalty, which no accuracy can make up for
      for candidate in candidates(targets, dw, window):
        if (best is None or candidate < best) and _within(targets, candidate):
          best = candidate
    if best is not None:
      return best
  return None


def _within(targets: Targets, candidate: Candidate) -> bool:
  if abs(candidate.num_params - targets.num_params) > targets.params_tolerance * targets.num_params:
    return False
  rate = candidate.num_active_params / candidate.num_params
  return not targets.activation_rate or abs(rate - targets.activation_rate) <= RATE_TOLERANCE


def candidates(
  targets: Targets, dw: DepthWidth, window: tuple | None, strict: bool = True
) -> Iterator[Candidate]:
  """Shapes of one depth and width, in or out of tolerance.

  Args:
    window: the range d_expert is kept in while it is free, None is any width.
    strict: leave out most of those that miss N by more than the tolerance.
  """
  if targets.kind == "dense":
    params = dw.fixed_params + 3 * dw.d_model * dw.d_ffn * dw.num_layers
    objective = _objective(targets, dw, params, params, dw.d_ffn)
    yield Candidate(objective, dw, dw.d_ffn, 0, 0, 0, 0, params, params)
    return
  t = targets
  shares = 1 if t.shared_expert and not t.d_shared else 0
  num_dense_layers = dw.num_layers - dw.num_moe_layers
  ffn_unit = 3 * dw.d_model * num_dense_layers  # parameters a channel of the dense layers
  unit = 3 * dw.d_model * dw.num_moe_layers  # parameters a channel of the MoE layers
  router = dw.d_model * dw.num_moe_layers if counts_router_and_norms(t.convention) else 0
  base = dw.fixed_params + ffn_unit * dw.d_ffn + unit * t.d_shared
  total = (t.num_params - base) / unit  # channels of an MoE layer without a given d_shared
  active = (t.activation_rate * t.num_params - base) / unit
  lowest, highest = _ffn_range(t, dw)
  reach = t.params_tolerance * t.num_params
  reach += ffn_unit * max(highest - dw.d_ffn, dw.d_ffn - lowest)
  for d_expert in _expert_widths(t, dw, window, total, active, shares, strict):
    coarse = 0.0  # distance from the given granularity
    if t.granularity:
      coarse = GIVEN_WEIGHT * ratio_distance(2 * dw.d_model / d_expert, t.granularity)
      if math.isinf(coarse):
        continue
    for chosen in _chosen(t, d_expert, active, shares):
      d_shared = t.d_shared or shares * chosen * d_expert
      rest = t.num_params - dw.fixed_params - ffn_unit * dw.d_ffn - unit * d_shared
      for experts in _floor_and_ceil(t.num_experts, rest / (unit * d_expert + router), chosen):
        params = base + unit * (shares * chosen + experts) * d_expert + router * experts
        if strict and (
          abs(t.num_params - params) > reach or experts > max(_MOST_EXPERTS, t.num_experts)
        ):
          continue
        unused = unit * (experts - chosen) * d_expert
        for d_ffn in _ffn_widths(t, dw, ffn_unit, params, params - unused, lowest, highest):
          n = params + ffn_unit * (d_ffn - dw.d_ffn)
          yield Candidate(
            _objective(t, dw, n, n - unused, d_ffn)
            + coarse
            + _ROUND * (_ROUGHNESS[d_expert % 128] + max(_ROUGHNESS[experts % 128] - 4, 0)),
            dw,
            d_ffn,
            experts,
            chosen,
            d_expert,
            d_shared,
            n,
            n - unused,
          )


def _objective(targets: Targets, dw: DepthWidth, params: int, active: int, d_ffn: int) -> float:
  value = (
    dw.penalty
    + _ROUND * _ROUGHNESS[d_ffn % 128]
    + abs(params / targets.num_params - 1) / targets.params_tolerance
  )
  if targets.activation_rate:
    value += _RATE * abs(active / params - targets.activation_rate) / RATE_TOLERANCE
  if d_ffn != dw.d_ffn:
    distance = abs(d_ffn / dw.d_ffn - 1)
    value += 0.05 * distance if distance <= 0.1 else distance - 0.095
  return value


def _expert_widths(
  targets: Targets,
  dw: DepthWidth,
  window: tuple | None,
  total: float,
  active: float,
  shares: int,
  strict: bool,
) -> list[int]:
  """Widths of an expert worth trying: the given one, or multiples where the rate can be met."""
  t, multiple = targets, targets.multiple
  if t.d_expert:
    return [t.d_expert]
  if t.num_experts and t.experts_per_token:
    exact = [total / (t.num_experts + shares * t.experts_per_token)]
  elif t.num_experts:
    # The rate fixes the share of channels that is active, and with it how many are chosen.
    share = min(max(active / total, 0), 1)
    counts = _floor_and_ceil(0, t.num_experts * share / (1 + shares - shares * share), 1)
    exact = [total / (t.num_experts + shares * count) for count in counts]
  elif t.experts_per_token:
    exact = [active / ((1 + shares) * t.experts_per_token)]
  else:
    low, high = 1, 2.6 * dw.d_model  # 2.5 d_model: the paper's coarsest experts
    if t.granularity:
      low, high = (
        2 * dw.d_model / t.granularity * factor
        for factor in (1 / (1 + RATIO_TOLERANCE), 1 + RATIO_TOLERANCE)
      )
    elif window:
      low, high = (max(share * dw.d_model, least) for share, least in window)
    high = min(high, active / (1 + shares) + multiple)  # one expert chosen is the least
    if not strict:
      high = max(high, multiple)
      low = min(low, high)
    return list(range(math.ceil(low / multiple) * multiple, int(high) + 1, multiple))
  # A rate is met within a tolerance, so widths around the exact one may fit N better.
  slack = 0.0
  if not (t.num_experts and t.experts_per_token):
    slack = RATE_TOLERANCE * t.num_params / (3 * dw.d_model * dw.num_moe_layers)
  widths = set()
  for width in exact:
    reach = slack / ((1 + shares) * (t.experts_per_token or 1)) if t.experts_per_token else 0.0
    lowest = max(math.floor((width - reach) / multiple), 1)
    highest = max(math.ceil((width + reach) / multiple), lowest)
    widths.update(step * multiple for step in range(lowest, highest + 1))
  return sorted(widths)


def _chosen(targets: Targets, d_expert: int, active: float, shares: int) -> tuple[int, ...]:
  """How many experts a token may choose at this width."""
  if targets.experts_per_token:
    return (targets.experts_per_token,)
  return _floor_and_ceil(0, active / ((1 + shares) * d_expert), 1)


def _floor_and_ceil(given: int, value: float, least: int) -> tuple[int, ...]:
  """The given count, or the two whole numbers around a value, none below `least`."""
  if given:
    return (given,) if given >= least else ()
  below = max(math.floor(value), least)
  above = max(math.ceil(value), least)
  return (below,) if below == above else (below, above)


def _ffn_range(targets: Targets, dw: DepthWidth) -> tuple[int, int]:
  """Widths the dense layers of an MoE may have: the given one, or a third around the wanted."""
  if targets.d_ffn:
    return dw.d_ffn, dw.d_ffn
  multiple = targets.multiple
  return (
    math.ceil(0.75 * dw.d_ffn / multiple) * multiple,
    math.floor(1.33 * dw.d_ffn / multiple) * multiple,
  )


def _ffn_widths(
  targets: Targets,
  dw: DepthWidth,
  ffn_unit: int,
  params: int,
  active: int,
  lowest: int,
  highest: int,
) -> tuple[int, ...]:
  """Widths of the dense layers that meet N or the rate best, inside their range."""
  if lowest == highest or not ffn_unit:
    return (dw.d_ffn,)
  multiple = targets.multiple
  of_params = dw.d_ffn + (targets.num_params - params) / ffn_unit
  first = min(max(round(of_params / multiple) * multiple, lowest), highest)
  if not targets.activation_rate:
    return (first,)
  missing = targets.activation_rate * params - active
  of_rate = dw.d_ffn + missing / ((1 - targets.activation_rate) * ffn_unit)
  leeway = _LEEWAY * targets.num_params / ffn_unit
  of_rate = min(max(of_rate, of_params - leeway), of_params + leeway)
  second = min(max(round(of_rate / multiple) * multiple, lowest), highest)
  return (first,) if first == second else (first, second)
