"""Draws a figure of the report, for tests of what it shows."""

from moe_parity.report import figure_style


def draw(drawing):
  """The matplotlib figure of a `Drawing` at the width of a desk."""
  with figure_style.settings():
    return drawing.draw(figure_style.DESK)
