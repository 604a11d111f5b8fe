"""Symbols of the page: what each means, as a hover text and as a line where it is first used."""

import html
import re
from collections.abc import Iterable

SYMBOLS = {
  "BPC": "bits per character of held-out text, the score: lower is better",
  "BPB": "bits per byte of held-out text",
  "N_a": "parameters that one token uses (active), without the vocabulary's",
  "N": "parameters of a model, without the vocabulary's",
  "r_a": "activation rate, N_a / N: the share of the parameters that a token uses; 100 % is dense",
  "C": "training compute in FLOPs, counted by the budget's convention",
  "D^": "unique training tokens: each counted once, however often it is read",
  "D": "training tokens read, repetitions included",
  "M": "FLOPs a token",
  "E": "routed experts in a layer",
  "K": "routed experts that one token uses",
  "L": "layers",
  "CE": "cross-entropy on training text, in nats a token",
  "MaxVio": "load of the fullest expert over the even load, minus 1: 0 is even",
  "RMS": "root mean square over the numbers of a vector: its typical size",
}
# A symbol stands alone: not a piece of a word, of an arm's name or of a path.
_SYMBOL = re.compile(
  r"(?<![\w&;/.\-^#])(" + "|".join(map(re.escape, SYMBOLS)) + r")(?![\w\-^]|/\w{2}|\.\w)"
)
_MARKED = re.compile(r'<abbr title="[^"]*">([^<]+)</abbr>')


def marked(text: str) -> str:
  """Escaped text in which every symbol explains itself on hover. `text` is plain."""
  return _SYMBOL.sub(
    lambda m: f'<abbr title="{html.escape(SYMBOLS[m[1]], quote=True)}">{m[1]}</abbr>',
    html.escape(text),
  )


def symbols_of(body: str) -> list[str]:
  """The symbols that HTML made by `marked` uses, in the order of their first use."""
  return list(dict.fromkeys(_MARKED.findall(body)))


def explained(symbols: Iterable[str]) -> str:
  """One line on these symbols, as HTML; "" for none."""
  said = [f"<b>{html.escape(s)}</b> {html.escape(SYMBOLS[s])}" for s in symbols]
  return f'<p class="symbols">{"; ".join(said)}.</p>\n' if said else ""


class FirstUses:
  """Gives each part of a page, in order, the line on the symbols that no earlier part explained."""

  def __init__(self) -> None:
    self._explained: set[str] = set()

  def line(self, body: str) -> str:
    """The line on the symbols of `body` that are new."""
    new = [symbol for symbol in symbols_of(body) if symbol not in self._explained]
    self._explained |= set(new)
    return explained(new)
