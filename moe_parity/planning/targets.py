"""What a researcher asks of a shape: a size, a rate, ratios, fields already decided."""

from __future__ import annotations

import dataclasses
import math

from moe_parity.errors import UserError
from moe_parity.fields.check import check_values
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture, layer_pattern

RATE_TOLERANCE = 0.005  # largest |r_a - target| of a solved shape
RATIO_TOLERANCE = 0.35  # a given ratio is met within this factor: depth is a whole number of layers

OF_DENSE_LAYERS = ("d_ffn", "ffn_ratio")  # what only a model with dense layers has
_ANY_DEPTH = 200  # to read a layout with while the depth is open


def ratio_distance(ratio: float | int, target: float | int) -> float:
  """|ln(ratio / target)|, infinite where that is more than RATIO_TOLERANCE allows."""
  distance = abs(math.log(ratio / target)) if ratio > 0 else math.inf
  return distance if distance <= math.log(1 + RATIO_TOLERANCE) + 1e-9 else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeTargets:
  """What may be given of a shape; 0 means "not given, the solver decides".

  Attributes:
    activation_rate: N_a / N of an MoE, met within RATE_TOLERANCE; 0 only where num_experts and
      experts_per_token are given.
    num_layers .. d_shared: fields of the architecture, respected exactly.
    aspect_ratio (d_model / num_layers), ffn_ratio (d_ffn / d_model of dense layers),
      total_ffn_ratio ((d_shared + E d_expert) / d_model), granularity (2 d_model / d_expert): met
      as nearly as whole numbers allow, within a factor 1 + RATIO_TOLERANCE.
    shared_expert: whether d_shared = K d_expert; otherwise there is none unless d_shared is given.
    multiple_of: widths of the model and its feed-forward parts that are not given are multiples of
      this; 0 is 8, what all widths of the paper are multiples of.
  """

  activation_rate: float | int = 0.0
  num_layers: int = 0
  d_model: int = 0
  num_heads: int = 0
  num_kv_heads: int = 0
  d_head: int = 0
  d_ffn: int = 0
  num_experts: int = 0
  experts_per_token: int = 0
  d_expert: int = 0
  d_shared: int = 0
  aspect_ratio: float | int = 0.0
  ffn_ratio: float | int = 0.0
  total_ffn_ratio: float | int = 0.0
  granularity: float | int = 0.0
  shared_expert: bool = True
  multiple_of: int = 0

  def check_ratios(self, shape: Architecture) -> None:
    """Refuses a shape that was given in full and is not what the ratios ask for.

    Raises:
      UserError: a ratio outside RATIO_TOLERANCE, an activation rate outside RATE_TOLERANCE.
    """
    ratios = {"aspect_ratio": shape.aspect_ratio}
    if shape.num_dense_layers:
      ratios["ffn_ratio"] = shape.ffn_ratio
    if shape.is_moe:
      ratios["total_ffn_ratio"] = shape.total_ffn_ratio
      ratios["granularity"] = 2 * shape.d_model / shape.d_expert
    wrong = {
      name: (getattr(self, name), ratio)
      for name, ratio in ratios.items()
      if getattr(self, name) and math.isinf(ratio_distance(ratio, getattr(self, name)))
    }
    rate = cost_of(shape, 1).activation_rate
    if self.activation_rate and abs(rate - self.activation_rate) > RATE_TOLERANCE:
      wrong["activation_rate"] = self.activation_rate, rate
    for name, (target, has) in wrong.items():
      raise UserError(
        f"{name}={target:g} but the given shape has {has:.4f}; set it to 0 or leave a field of the"
        " shape open"
      )


@dataclasses.dataclass(frozen=True)
class Targets(ShapeTargets):
  """A shape to solve for.

  Attributes:
    num_params: N under `convention`, met within params_tolerance. kind: "dense" or "moe".
    layout: as of an architecture; a string of letters fixes the depth.

  Raises:
    UserError: a value out of its range, or targets that contradict each other.
  """

  num_params: int
  kind: str = "moe"
  convention: str = "paper"
  layout: str = "1dense"
  vocab_size: int = 0
  params_tolerance: float = 0.003

  def __post_init__(self) -> None:
    check_values("arms.*", vars(self), "")
    check_values("budget", vars(self), "")
    if self.kind == "dense":
      self._check_dense()
    else:
      self._check_moe()

  @property
  def multiple(self) -> int:
    """The multiple that widths keep to."""
    return self.multiple_of or 8

  @property
  def depth(self) -> int:
    """Layers, where they are decided: given, or one a letter of the layout; else 0."""
    letters = self.kind == "moe" and self.layout and set(self.layout) <= {"D", "M"}
    return self.num_layers or (len(self.layout) if letters else 0)

  def _check_dense(self) -> None:
    if self.layout != "dense":
      raise UserError(f"layout={self.layout!r} in a dense arm; use layout='dense' or kind='moe'")
    for name in (
      "num_experts",
      "experts_per_token",
      "d_expert",
      "d_shared",
      "total_ffn_ratio",
      "granularity",
    ):
      if getattr(self, name):
        raise UserError(
          f"{name}={getattr(self, name)} in a dense arm; set it to 0 or use kind='moe'"
        )
    if self.activation_rate not in (0, 1):
      raise UserError(
        f"activation_rate={self.activation_rate} in a dense arm, which uses all its "
        f"parameters; set it to 0 or use kind='moe'"
      )

  def _check_moe(self) -> None:
    if self.layout == "dense":
      raise UserError("layout='dense' in an MoE arm; use full, interleave, 1dense or kind='dense'")
    pattern = layer_pattern(self.layout, self.depth or _ANY_DEPTH)
    if not any(pattern):
      raise UserError(f"layout={self.layout!r} has no MoE layer; use full or kind='dense'")
    for name in OF_DENSE_LAYERS if all(pattern) else ():
      if getattr(self, name):
        raise UserError(
          f"{name}={getattr(self, name)} with layout={self.layout!r}, which has no dense layer to"
          " use it; set it to 0, or use a layout with dense layers, such as 1dense"
        )
    if self.activation_rate >= 1:
      raise UserError(
        f"activation_rate={self.activation_rate} is not a share below 1; write 0.2 for 20 %"
      )
    if not self.activation_rate and not (self.num_experts and self.experts_per_token):
      raise UserError(
        "activation_rate=0 and no num_experts with experts_per_token; give the rate or both counts"
      )
    if self.num_experts and self.experts_per_token > self.num_experts:
      raise UserError(
        f"experts_per_token={self.experts_per_token} exceeds "
        f"num_experts={self.num_experts}; choose at most as many as there are"
      )
