"""Pieces of HTML: figures, tables, folds, sentences. Everything that comes in is escaped here."""

import dataclasses
import html
import re
import urllib.parse
from collections.abc import Iterable

from moe_parity.report import figure_style, glossary
from moe_parity.report.table_formats import Table, file_name


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and HTML that is already escaped."""

  title: str
  body: str


def figure(drawing: figure_style.Drawing | None, missing: str = "") -> str:
  """The drawing twice, for desk and phone, of which the stylesheet shows one.

  Args:
    missing: said where there is no drawing; "" says nothing.
  """
  if drawing is None:
    return missing_note(missing) if missing else ""
  alt = html.escape(f"{drawing.title}. {drawing.caption}", quote=True)
  images = "\n".join(
    f'<img class="{name}" src="{data_uri(drawing.svg(width))}" alt="{alt}">'
    for name, width in (("desk", figure_style.DESK), ("phone", figure_style.PHONE))
  )
  return f"""<figure>
{images}
<figcaption><b>{html.escape(drawing.title)}.</b> {words(drawing.caption)}</figcaption>
</figure>
"""


def data_uri(svg: str) -> str:
  """An SVG as a data URI for a double-quoted attribute; a third shorter than base64."""
  svg = " ".join(svg.split())
  return "data:image/svg+xml," + urllib.parse.quote(svg, safe=" /:=;,.()<>!?+*@[]|'^{}$~")


def table(content: Table, missing: str = "") -> str:
  """A table with its caption and the names of its files."""
  if not content.rows:
    return missing_note(missing) if missing else ""
  files = html.escape(f"{file_name(content.name)}.csv, .md, .tex")
  title = words(content.title)
  return f'<p class="caption"><b>{title}</b> ({files})</p>\n{content.html()}\n'


def missing_note(what: str) -> str:
  return f'<p class="absent">Not here: {html.escape(what)}.</p>\n'


def details(summary: str, body: str, on_paper: bool = True) -> str:
  """Shown when asked for; on paper always, or not at all."""
  kind = "" if on_paper else ' class="screen"'
  return f"<details{kind}><summary>{html.escape(summary)}</summary>\n{body}</details>\n"


def words(line: str) -> str:
  """Escaped text whose symbols explain themselves on hover; a number keeps its percent sign."""
  return re.sub(r"(\d) %", "\\1\N{NO-BREAK SPACE}%", glossary.marked(line))


def paragraphs(lines: Iterable[str]) -> str:
  return "".join(f"<p>{words(line)}</p>\n" for line in lines)


def bullets(lines: Iterable[str]) -> str:
  items = "".join(f"<li>{words(line)}</li>\n" for line in lines)
  return f"<ul>\n{items}</ul>\n" if items else ""
