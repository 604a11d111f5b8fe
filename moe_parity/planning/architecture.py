"""The shape of a dense or Mixture-of-Experts transformer, and where its MoE layers sit."""

from __future__ import annotations

import dataclasses
import functools
import re

from moe_parity.errors import UserError
from moe_parity.fields.check import check_kind
from moe_parity.fields.kinds import Kind, Whole
from moe_parity.fields.table import ROWS

LAYOUTS = "dense, full, interleave, <n>dense (such as 1dense), or a string of D and M"
_VOCABULARY = Whole(0, 2**31)
_LEADING_DENSE = re.compile(r"(\d+)dense")


def layer_pattern(layout: str, num_layers: int) -> tuple[bool, ...]:
  """One flag a layer, first layer first: True where the feed-forward part is an MoE layer.

  `dense` has none, `full` only MoE layers, `interleave` alternates and begins with a dense layer,
  `<n>dense` has n dense layers and then only MoE, and a string such as `DMMDMM` says it in full.

  Raises:
    UserError: the layout is none of these, its length is not num_layers, or it promises MoE
      layers and leaves none.
  """
  leading = _LEADING_DENSE.fullmatch(layout)
  if layout == "dense":
    return (False,) * num_layers
  if layout == "full":
    return (True,) * num_layers
  if layout == "interleave":
    pattern = tuple(layer % 2 == 1 for layer in range(num_layers))
  elif leading:
    pattern = tuple(layer >= int(leading[1]) for layer in range(num_layers))
  elif layout and set(layout) <= {"D", "M"}:
    if len(layout) != num_layers:
      raise UserError(
        f"layout={layout!r} names {len(layout)} layers but num_layers={num_layers}; "
        f"give one letter a layer"
      )
    return tuple(letter == "M" for letter in layout)
  else:
    raise UserError(f"layout={layout!r} is not known; use {LAYOUTS}")
  if not any(pattern):
    raise UserError(
      f"layout={layout!r} leaves no MoE layer in num_layers={num_layers}; "
      f"use layout='dense' or more layers"
    )
  return pattern


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A decoder-only transformer with SwiGLU feed-forward parts, dense or routed, layer by layer.

  Letters of arXiv:2506.12119 in brackets. Widths are in channels, counts are whole numbers.

  Attributes:
    num_layers: all layers [L]. d_model: width of the residual stream [D_m].
    num_heads: query heads [H]. d_head: width of a head [D_h]; num_heads * d_head may differ from
      d_model. num_kv_heads: key and value heads; 0 is replaced by num_heads (no sharing), so
      readers always see the real count.
    layout: which layers are MoE, see `layer_pattern`.
    d_ffn: width of a dense layer's feed-forward part [D_ffn]; used by dense layers only.
    num_experts: routed experts an MoE layer [E]. experts_per_token: chosen ones [K].
    d_expert: width of one routed expert [D_e]. d_shared: width of the shared expert [D_se], 0 for
      none; every token passes it, ungated.
    vocab_size: rows of the embedding and columns of the untied head; 0 where it does not matter.

  Raises:
    UserError: a field that breaks its row of `fields.table`, more experts chosen than there are,
      heads that do not share evenly, expert fields without an MoE layer or the reverse.
  """

  num_layers: int
  d_model: int
  num_heads: int
  d_head: int
  num_kv_heads: int = 0
  layout: str = "dense"
  d_ffn: int = 0
  num_experts: int = 0
  experts_per_token: int = 0
  d_expert: int = 0
  d_shared: int = 0
  vocab_size: int = 0

  def __post_init__(self) -> None:
    for name, kind in _kinds().items():
      value = getattr(self, name)
      check_kind(name, value, kind)
      if isinstance(value, float):
        object.__setattr__(self, name, int(value))
    if self.num_kv_heads == 0:
      object.__setattr__(self, "num_kv_heads", self.num_heads)
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}; let every key head serve as many queries"
      )
    if self.num_dense_layers and not self.d_ffn:
      raise UserError(
        f"d_ffn=0 but layout={self.layout!r} has {self.num_dense_layers} dense "
        f"layer(s); give their feed-forward width"
      )
    self._check_experts()

  def _check_experts(self) -> None:
    experts = {
      name: getattr(self, name) for name in ("num_experts", "experts_per_token", "d_expert")
    }
    if not self.is_moe:
      for name, value in (experts | {"d_shared": self.d_shared}).items():
        if value:
          raise UserError(
            f"{name}={value} but layout={self.layout!r} has no MoE layer; "
            f"set it to 0 or use another layout: {LAYOUTS}"
          )
      return
    for name, value in experts.items():
      if not value:
        raise UserError(
          f"{name}=0 but layout={self.layout!r} has {self.num_moe_layers} MoE "
          f"layer(s); give at least 1"
        )
    if self.experts_per_token > self.num_experts:
      raise UserError(
        f"experts_per_token={self.experts_per_token} exceeds "
        f"num_experts={self.num_experts}; choose at most as many as there are"
      )

  @functools.cached_property
  def moe_layers(self) -> tuple[bool, ...]:
    """One flag a layer, first layer first: True for an MoE layer."""
    return layer_pattern(self.layout, self.num_layers)

  @functools.cached_property
  def num_moe_layers(self) -> int:
    """MoE layers [L_e]."""
    return sum(self.moe_layers)

  @property
  def num_dense_layers(self) -> int:
    """Layers with a dense feed-forward part [L_d]."""
    return self.num_layers - self.num_moe_layers

  @property
  def is_moe(self) -> bool:
    """Whether any layer routes."""
    return self.num_moe_layers > 0

  @property
  def ffn_ratio(self) -> float:
    """alpha = D_ffn / D_m, of the dense layers."""
    return self.d_ffn / self.d_model

  @property
  def aspect_ratio(self) -> float:
    """zeta = D_m / L."""
    return self.d_model / self.num_layers

  @property
  def total_ffn_ratio(self) -> float:
    """mu = (D_se + E D_e) / D_m, all feed-forward width of an MoE layer; 0 for a dense model."""
    return (self.d_shared + self.num_experts * self.d_expert) / self.d_model

  @property
  def active_ffn_ratio(self) -> float:
    """beta = (D_se + K D_e) / D_m, the width one token passes in an MoE layer; 0 when dense."""
    return (self.d_shared + self.experts_per_token * self.d_expert) / self.d_model

  def context_ratio(self, seq_len: int) -> float:
    """gamma = S / D_m."""
    return seq_len / self.d_model

  def to_dict(self) -> dict[str, int | str]:
    """All fields by name, in the order of the class, ready for JSON."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @classmethod
  def from_dict(cls, values: dict[str, int | str]) -> Architecture:
    """The inverse of `to_dict`; a name that is no field raises UserError."""
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
      raise UserError(f"{unknown[0]!r} is no field of an architecture; use {', '.join(names)}")
    required = [
      field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
      raise UserError(f"{missing[0]} is missing from an architecture; give {', '.join(required)}")
    return cls(**values)


def dense_of_active_size(moe: Architecture) -> Architecture:
  """The dense model of an MoE's depth, width and heads whose N is the MoE's N_a.

  Its d_ffn is the mean width of the feed-forward parts that a token meets, rounded: d_ffn in dense
  layers, d_shared + K d_expert in MoE layers. N is met within 3 d L / 2 parameters.
  """
  met = moe.d_ffn * moe.num_dense_layers
  met += (moe.d_shared + moe.experts_per_token * moe.d_expert) * moe.num_moe_layers
  return dataclasses.replace(
    moe,
    layout="dense",
    d_ffn=max(1, round(met / moe.num_layers)),
    num_experts=0,
    experts_per_token=0,
    d_expert=0,
    d_shared=0,
  )


@functools.cache
def _kinds() -> dict[str, Kind]:
  """What each field of an `Architecture` may hold, by the table of fields."""
  found: dict[str, Kind] = {}
  for field in dataclasses.fields(Architecture):
    kind = _VOCABULARY if field.name == "vocab_size" else ROWS[f"arms.*.{field.name}"].kind
    if field.default is dataclasses.MISSING:
      kind = dataclasses.replace(kind, least=1)  # 0 leaves the choice to the solver
    found[field.name] = kind
  return found
