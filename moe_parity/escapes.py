r"""Names inside the small languages of options: sources, held-out works, domain weights.

Those languages separate with commas, equals signs and colons, and skip blanks around parts. A
backslash takes its meaning from the character behind it: `a\,b=1` is weight 1 for the domain "a,b".
In file names and patterns `\*`, `\?` and `\[` are the characters themselves.
"""

import re

from moe_parity.errors import UserError

_TOKEN = re.compile(r"\\(?:.|\Z)|[^\\]", re.DOTALL)
_PLAIN = re.compile(r"[\w.+-]")


def split(text: str, separator: str) -> list[str]:
  """Parts between separators that no backslash stands before; still escaped, outer blanks gone."""
  parts: list[list[str]] = [[]]
  for token in _tokens(text):
    if token == separator:
      parts.append([])
    else:
      parts[-1].append(token)
  return ["".join(_stripped(part)) for part in parts]


def split_at_last(text: str, separator: str) -> tuple[str, str]:
  """What stands before and after the last separator, as `split` gives parts; ("", text) without."""
  *before, after = split(text, separator)
  return separator.join(before), after


def unescape(text: str, pattern: bool = False) -> str:
  """The name that is meant. With `pattern`, an escaped *, ? or [ becomes `[*]`, `[?]` or `[[]`."""
  parts = []
  for token in _tokens(text):
    letter = token[-1]
    literal = pattern and len(token) == 2 and letter in "*?["
    parts.append(f"[{letter}]" if literal else letter)
  return "".join(parts)


def escape(name: str) -> str:
  """The name as every small language reads it: letters, digits and `_.+-` as they are."""
  return "".join(c if _PLAIN.match(c) else f"\\{c}" for c in name)


def _tokens(text: str) -> list[str]:
  tokens = _TOKEN.findall(text)
  if tokens and tokens[-1] == "\\":
    raise UserError(
      f"{text!r} ends in a backslash, which takes the meaning from the character behind it; write"
      r" \\ for a backslash"
    )
  return tokens


def _stripped(tokens: list[str]) -> list[str]:
  places = [place for place, token in enumerate(tokens) if not token.isspace()]
  return tokens[places[0] : places[-1] + 1] if places else []
