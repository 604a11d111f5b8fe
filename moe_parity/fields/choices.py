"""Words that fields choose from, and rules of the texts that have a grammar."""

from __future__ import annotations

import math
import re

CONVENTIONS = ("paper", "paper_full", "exact", "executed")
REUSE = ("unique", "strict", "loose", "epochs")
HELD_FIXED = ("compute", "tokens")
METHODS = ("arms", "activation_rate", "architecture", "data_reuse")
POSITIONS = ("alibi", "rope", "none")
ROPE_BASE, NORM_EPSILON = 10_000.0, 1e-6  # defaults
REMAT = ("none", "dots", "layer")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("blocks", "cudnn", "flash", "splash")
TOKEN_DISPATCHERS = ("all_to_all", "ragged_all_to_all", "ragged_all_to_all_dedup", "all_gather")
MODES = ("document", "strided", "packed")
ABLATIONS = ("routed_removed", "router_shuffled", "top_1")
CHAT_FORMATS = ("messages", "sharegpt", "alpaca")
POLICIES = ("refuse", "leave-out")
ARM_KINDS = ("dense", "moe")
GATES = ("", "raw", "normalized")
ROLES = ("", "check", "tuning")
PER_CHOICE, LEARNED = "E/K", "learned"  # values of routed_scale that are no number
BYTE_VOCABULARY = 16 + 256  # special tokens and bytes of the built-in tokenizer
MAX_VOCABULARY = 1 << 16  # of a tokenizer trained here: ids are uint16
_EMPTY_NAME = re.compile(r"(^|(?<!\\),)\s*(,|$)")  # a comma behind a backslash belongs to a name


def scale_problem(text: str) -> str:
  """The rule that a routed_scale breaks."""
  if text in ("", PER_CHOICE, LEARNED):
    return ""
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  return "" if 1e-6 <= value <= 1e6 else "is no number in range and no word that stands for one"


def tokenizer_problem(text: str) -> str:
  """The rule that a tokenizer's name breaks; whether a file is there is seen when it is opened."""
  if not text:
    return "is empty"
  digits = text.removeprefix("bpe:")
  if digits == text:
    return ""
  if not (digits.isdecimal() and digits.isascii() and len(digits) <= 9):
    return "is not bpe: and a whole number"
  fits = BYTE_VOCABULARY < int(digits) <= MAX_VOCABULARY
  return "" if fits else f"is not between bpe:{BYTE_VOCABULARY + 1} and bpe:{MAX_VOCABULARY}"


def held_out_problem(text: str) -> str:
  """The rule that a held_out breaks."""
  kind, colon, value = text.partition(":")
  if not text or (kind == "source" and value.strip()):
    return ""
  if kind == "works" and colon:
    return "has an empty name" if _EMPTY_NAME.search(value) else ""
  if kind != "hash" or not colon:
    return "is not hash:, works: or source: with a value"
  try:
    share = float(value)
  except ValueError:
    share = math.nan
  return "" if 0 < share < 1 else "has a share that is not over 0 and under 1"
