"""Pieces of HTML for a notebook: a heading, facts, a table. No stylesheet is needed."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_parity.report.figure_style import ACCENT, BETTER, MUTED, WORSE
from moe_parity.report.markup import words
from moe_parity.report.table_formats import quantity

__all__ = ["card", "items", "table", "words"]
COLORS = {"good": BETTER, "bad": WORSE, "open": ACCENT, "": MUTED}


def table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
  """Rows of equal keys; numbers are aligned to the right, None is an empty cell."""
  if not rows:
    return "<p><i>(nothing)</i></p>"
  head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows[0])
  body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows)
  title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
  return (
    f'<div style="overflow-x:auto"><table>{title}<thead><tr>{head}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def card(title: str, facts: Iterable[str], *parts: str, mood: str = "") -> str:
  """A heading, facts side by side, and HTML below them.

  Args:
    facts: plain text.
    parts: HTML that is already escaped.
    mood: good | bad | open: the color of the bar at the side.
  """
  line = " &nbsp;·&nbsp; ".join(html.escape(fact) for fact in facts)
  return (
    f'<div style="border-left:4px solid {COLORS[mood]};padding:.2em 0 .2em .8em;margin:.3em 0">'
    f"<div><b>{html.escape(title)}</b></div>"
    f'<div style="color:{MUTED}">{line}</div>{"".join(parts)}</div>'
  )


def items(lines: Iterable[str]) -> str:
  """Sentences as a list; "" for none."""
  items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
  return f"<ul>{items}</ul>" if items else ""


def _cell(value: Any) -> str:
  if value is None:
    return "<td></td>"
  if isinstance(value, bool) or not isinstance(value, int | float):
    return f'<td style="text-align:left">{html.escape(str(value))}</td>'
  shown = quantity(value) if isinstance(value, int) else f"{value:,.4g}"
  return f'<td style="text-align:right">{shown}</td>'
