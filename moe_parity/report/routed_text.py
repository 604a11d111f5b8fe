"""A text with the experts its tokens went to: as rows, as JSON, and colored in a notebook."""

import dataclasses
import html
from collections import Counter
from typing import Any

import numpy as np

from moe_parity.errors import UserError
from moe_parity.report import cards


@dataclasses.dataclass(frozen=True)
class RoutedText:
  """Which experts each token of a text went to.

  Attributes:
    tokens: what each token stands for. A token that ends inside a character shows as U+FFFD.
    experts: int [tokens, MoE layers, K]. gates: the same shape, the weight of each expert's output.
    layers: number of each MoE layer in the model, from 1.
    num_experts: E.
  """

  tokens: tuple[str, ...]
  experts: np.ndarray
  gates: np.ndarray
  layers: tuple[int, ...]
  num_experts: int

  def rows(self) -> list[dict[str, Any]]:
    """One row a token, layer and choice."""
    return [
      {
        "position": t,
        "token": token,
        "layer": layer,
        "choice": k + 1,
        "expert": int(self.experts[t, i, k]),
        "gate": float(self.gates[t, i, k]),
      }
      for t, token in enumerate(self.tokens)
      for i, layer in enumerate(self.layers)
      for k in range(self.experts.shape[2])
    ]

  def loads(self) -> np.ndarray:
    """Share of the assignments that each expert got, [MoE layers, E]; every row sums to 1."""
    by_layer = self.experts.swapaxes(0, 1).reshape(len(self.layers), -1)
    counts = np.stack([np.bincount(layer, minlength=self.num_experts) for layer in by_layer])
    return counts / counts.sum(1, keepdims=True)

  def to_dict(self) -> dict[str, Any]:
    """Ready for JSON; `from_dict` reads it."""
    return {
      "tokens": list(self.tokens),
      "experts": self.experts.tolist(),
      "gates": [[[round(float(g), 6) for g in k] for k in layer] for layer in self.gates],
      "layers": list(self.layers),
      "num_experts": self.num_experts,
    }

  @classmethod
  def from_dict(cls, value: dict[str, Any]) -> "RoutedText":
    return cls(
      tuple(value["tokens"]),
      np.array(value["experts"], np.int32),
      np.array(value["gates"], np.float32),
      tuple(value["layers"]),
      value["num_experts"],
    )

  def html(self, layer: int | None = None) -> str:
    """The text, each token in the color of its first expert; all its experts and gates are shown
    when the mouse is over it.

    Args:
      layer: as in `layers`; None shows the first.
    Raises:
      UserError: no such MoE layer.
    """
    layer = self.layers[0] if layer is None else layer
    if layer not in self.layers:
      raise UserError(f"layer {layer} is no MoE layer; they are {', '.join(map(str, self.layers))}")
    i = self.layers.index(layer)
    spans = "".join(
      _span(token, self.experts[t, i], self.gates[t, i], self.num_experts)
      for t, token in enumerate(self.tokens)
    )
    count = Counter(self.experts[:, i].reshape(-1).tolist())
    legend = " ".join(
      f'<span style="background:{color(e, self.num_experts)};padding:0 .5em;border-radius:3px">'
      f"expert {e}: {n}</span>"
      for e, n in count.most_common(12)
    )
    more = len(count) - 12
    legend += f" and {more} more" if more > 0 else ""
    text = f'<div style="font:15px/1.9 monospace;white-space:pre-wrap">{spans}</div>'
    facts = [f"{len(self.tokens)} tokens", f"{len(count)} of {self.num_experts} experts used"]
    return cards.card(f"Layer {layer}", facts, text, f'<div style="line-height:2">{legend}</div>')

  def _repr_html_(self) -> str:
    return "".join(self.html(layer) for layer in self.layers)


def color(expert: int, num_experts: int) -> str:
  """A light color for an expert; neighbors in number are far apart in hue."""
  hue = (expert * 0.61803398875 % 1) * 360
  light = 72 + 12 * (expert % 2) if num_experts > 12 else 78
  return f"hsl({hue:.0f},70%,{light}%)"


def _span(token: str, experts: np.ndarray, gates: np.ndarray, num_experts: int) -> str:
  hint = ", ".join(f"expert {e}: {g:.3f}" for e, g in zip(experts, gates, strict=True))
  shown = html.escape(token).replace("\n", "&crarr;\n")
  return (
    f'<span title="{hint}" style="background:{color(int(experts[0]), num_experts)};color:#1b1f24;'
    f'border-radius:2px">{shown}</span>'
  )
