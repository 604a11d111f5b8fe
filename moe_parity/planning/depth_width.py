"""Depths and widths worth trying for a size: the outer loop of the solver."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from moe_parity.planning.accounting import counts_router_and_norms
from moe_parity.planning.architecture import layer_pattern
from moe_parity.planning.targets import RATIO_TOLERANCE, Targets, ratio_distance

# Preferences where nothing is given. The paper's 2B MoE has 88 and 22.5; below 2B the width shrinks
# faster than the depth, so that small models keep several layers. Kaplan et al. (2001.08361): a
# 40-fold change of the aspect ratio costs a few percent of loss.
TOTAL_FFN_RATIO = 22.5
FFN_RATIO = 8 / 3
GIVEN_WEIGHT, PREFERRED_WEIGHT = 10.0, 5.0  # weight of |ln(ratio / target)| in the objective


class DepthWidth(NamedTuple):
  """A depth and a width. penalty: weighted distance of its ratios from the targets."""

  penalty: float
  num_layers: int
  d_model: int
  num_heads: int
  d_head: int
  d_ffn: int
  num_moe_layers: int
  fixed_params: int


class DepthWidthKey(NamedTuple):
  """The part of the targets that the search depends on: arms of one study share the search."""

  num_params: int
  dense: bool
  convention: str
  layout: str
  depth: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  d_head: int
  d_ffn: int
  aspect_ratio: float
  ffn_ratio: float
  total_ffn_ratio: float
  multiple: int
  is_relaxed: bool


def depth_widths(targets: Targets, is_relaxed: bool = False) -> tuple[DepthWidth, ...]:
  """All depths and widths near the targets, best ratios first, ties to the smaller depth.

  Ratios that were not given may lie a factor 2 to 3 from the preferred ones, or 4 to 16 if
  `is_relaxed`.

  A dense layer's d_ffn is the given one, or the given (else preferred) ratio rounded to the
  multiple. For an MoE the experts take what is left of N, so the total FFN ratio follows.
  """
  t = targets
  return _depth_widths(
    DepthWidthKey(
      t.num_params,
      t.kind == "dense",
      t.convention,
      t.layout,
      t.depth,
      t.d_model,
      t.num_heads,
      t.num_kv_heads,
      t.d_head,
      t.d_ffn,
      float(t.aspect_ratio),
      float(t.ffn_ratio),
      float(t.total_ffn_ratio),
      t.multiple,
      is_relaxed,
    )
  )


def preferred_aspect_ratio(num_params: int) -> float:
  """zeta where none is given: the paper's 88 at 2.15e9, about 24 at a million, at most 128."""
  return min(128.0, 88 * (num_params / 2.15e9) ** 0.17)


@functools.lru_cache(maxsize=256)
def _depth_widths(key: DepthWidthKey) -> tuple[DepthWidth, ...]:
  sizes = []
  for d_model in _widths(key):
    heads = _heads(key, d_model)
    if heads is None:
      continue
    for num_layers in _depths(key, d_model):
      size = _depth_width(key, num_layers, d_model, *heads)
      if size is not None:
        sizes.append(size)
  return tuple(sorted(sizes))


def _widths(key: DepthWidthKey) -> range | tuple[int, ...]:
  if key.d_model:
    return (key.d_model,)
  # Free widths are whole heads; from 20 billion parameters on also whole pairs of 128-wide tiles.
  tile = 256 if key.num_params >= 2e10 else 1
  head = key.d_head or key.num_heads or math.lcm(preferred_head(key.num_params), tile)
  step = math.lcm(key.multiple, head)
  # Even one layer of attention alone may not exceed N.
  return range(step, math.isqrt(key.num_params // 2) + step, step)


def preferred_head(num_params: int) -> int:
  """d_head where none is given: the paper's 128 from a billion parameters, less below."""
  return 128 if num_params >= 1e9 else 64 if num_params >= 5e7 else 32 if num_params >= 2e6 else 16


def _heads(key: DepthWidthKey, d_model: int) -> tuple[int, int] | None:
  """(num_heads, d_head), spanning d_model unless both are given; None where they cannot."""
  num_heads, d_head = key.num_heads, key.d_head
  if not num_heads and not d_head:
    sizes = [size for size in (128, 64, 32, 16, 8, 4, 2, 1) if d_model % size == 0]
    d_head = next(size for size in sizes if size <= preferred_head(key.num_params))
  if not num_heads:
    num_heads, rest = divmod(d_model, d_head)
  elif not d_head:
    d_head, rest = divmod(d_model, num_heads)
  else:
    rest = 0
  if rest or (key.num_kv_heads and num_heads % key.num_kv_heads):
    return None
  return num_heads, d_head


def _depths(key: DepthWidthKey, d_model: int) -> range | tuple[int, ...]:
  if key.depth:
    return (key.depth,)
  aspect = key.aspect_ratio or preferred_aspect_ratio(key.num_params)
  factor = 1 + RATIO_TOLERANCE if key.aspect_ratio else 4 if key.is_relaxed else 2
  most = min(math.floor(d_model / aspect * factor), key.num_params // (2 * d_model**2) + 1)
  return range(max(1, math.ceil(d_model / aspect / factor)), most + 1)


@functools.lru_cache(maxsize=4096)
def _moe_layers(layout: str, num_layers: int) -> int:
  """MoE layers of a layout at a depth, 0 where it does not fit the depth."""
  if layout.endswith("dense") and layout != "dense" and int(layout[:-5]) >= num_layers:
    return 0
  if layout == "interleave" and num_layers < 2:
    return 0
  return sum(layer_pattern(layout, num_layers))


def _depth_width(
  key: DepthWidthKey, num_layers: int, d_model: int, num_heads: int, d_head: int
) -> DepthWidth | None:
  """A depth and a width with their penalty; None where nothing is left for the feed-forward parts,
  or where a ratio is out of bounds."""
  num_moe_layers = 0 if key.dense else _moe_layers(key.layout, num_layers)
  if not key.dense and not num_moe_layers:
    return None
  num_dense_layers = num_layers - num_moe_layers
  fixed = 2 * d_model * d_head * (num_heads + (key.num_kv_heads or num_heads)) * num_layers
  if counts_router_and_norms(key.convention):
    fixed += (2 * num_layers + 1) * d_model
  penalty = 0.0
  if key.aspect_ratio or not (key.depth and key.d_model):
    penalty += _distance(
      d_model / num_layers,
      key.aspect_ratio,
      preferred_aspect_ratio(key.num_params),
      4 if key.is_relaxed else 2,
    )
  if key.dense:
    left = (key.num_params - fixed) / (3 * d_model * num_layers)
    ratio, target, preferred = left / d_model, key.ffn_ratio, FFN_RATIO
    widest = 4 if key.is_relaxed else 2
    d_ffn = key.d_ffn or _nearest(left, key.multiple)
  else:
    d_ffn = 0
    if num_dense_layers:
      d_ffn = key.d_ffn or _nearest((key.ffn_ratio or FFN_RATIO) * d_model, key.multiple)
      if key.d_ffn and key.ffn_ratio:
        penalty += GIVEN_WEIGHT * ratio_distance(d_ffn / d_model, key.ffn_ratio)
    left = key.num_params - fixed - 3 * d_model * d_ffn * num_dense_layers
    ratio = left / (3 * d_model * num_moe_layers) / d_model
    target, preferred = key.total_ffn_ratio, TOTAL_FFN_RATIO
    widest = 16 if key.is_relaxed else 3
  if left <= 0 or d_ffn < 0:
    return None
  penalty += _distance(ratio, target, preferred, widest)
  if not math.isfinite(penalty):
    return None
  return DepthWidth(penalty, num_layers, d_model, num_heads, d_head, d_ffn, num_moe_layers, fixed)


def _distance(ratio: float, target: float, preferred: float, widest: int) -> float:
  """Weighted |ln(ratio / target)|, infinite beyond the tolerance of a given or `widest` of a
  preferred target."""
  if target:
    return GIVEN_WEIGHT * ratio_distance(ratio, target)
  distance = abs(math.log(ratio / preferred)) if ratio > 0 else math.inf
  return PREFERRED_WEIGHT * distance if distance <= math.log(widest) else math.inf


def _nearest(width: float, multiple: int) -> int:
  """The multiple nearest to a width, at least one."""
  return max(1, round(width / multiple)) * multiple
