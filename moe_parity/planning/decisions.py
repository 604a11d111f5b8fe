"""What a config decides, read and checked, before anything is derived from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from moe_parity.errors import UserError
from moe_parity.planning.accounting import ATTENTION_BLOCK
from moe_parity.planning.budget import ArmSpec, Budget, read_arms, read_budget
from moe_parity.planning.domain_shares import Shares, read_shares

_BYTE_VOCABULARY = 16 + 256  # special tokens and bytes of the built-in tokenizer


@dataclasses.dataclass(frozen=True)
class Decisions:
  """Budget, arms and what else of a config a plan rests on.

  Attributes:
    vocab_size: 0 while it is not known; is_vocab_assumed where no token store said it.
    attention_block: queries that attention computes at a time.
    data_seed: of the text drawn and its order; draw_per_seed: whether an arm's seed is added to it.
    shares: of each domain, None without data.weights. max_epochs: times any data may be read.
  """

  budget: Budget
  specs: list[ArmSpec]
  tokenizer: str
  vocab_size: int
  is_vocab_assumed: bool
  attention_block: int
  data_seed: int
  draw_per_seed: bool
  shares: Shares | None
  max_epochs: float | int
  final_learning_rate: float
  warmup_steps: int


def read_decisions(config: Any, vocab_size: int = 0) -> Decisions:
  """Reads a config: a mapping, a config dictionary or a plain object; see `plan.make_plan`.

  Args:
    vocab_size: of the token store in use, 0 while there is none.
  Raises:
    UserError: a section that is missing, or a field against a rule.
  """
  data, optimizer = get(config, "data", {}), get(config, "optimizer", {})
  model, tokenizer = get(config, "model", {}), str(get(data, "tokenizer", ""))
  return Decisions(
    budget=read_budget(get(config, "budget")),
    specs=read_arms(get(config, "arms"), get(config, "seed", 0)),
    tokenizer=tokenizer,
    vocab_size=vocab_size or _vocabulary(tokenizer),
    is_vocab_assumed=not vocab_size,
    attention_block=get(model, "attention_block", ATTENTION_BLOCK),
    data_seed=get(data, "seed", 0),
    draw_per_seed=get(data, "draw_per_seed", True),
    shares=read_shares(get(data, "weights", "")),
    max_epochs=get(data, "max_epochs", 0.0),
    final_learning_rate=float(get(optimizer, "final_learning_rate", 1e-5)),
    warmup_steps=get(optimizer, "warmup_steps", 2000),
  )


def _vocabulary(tokenizer: str) -> int:
  """Vocabulary of a tokenizer by its name, 0 where only its file would tell."""
  if tokenizer == "bytes":
    return _BYTE_VOCABULARY
  size = tokenizer.removeprefix("bpe:")
  return int(size) if tokenizer.startswith("bpe:") and size.isdigit() else 0


_REQUIRED = object()


def get(section: Any, name: str, default: Any = _REQUIRED) -> Any:
  """A value of a section: a mapping, a config dictionary or a plain object."""
  if hasattr(section, "keys"):
    if name in section:
      return section[name]
  elif hasattr(section, name):
    return getattr(section, name)
  if default is _REQUIRED:
    raise UserError(f"the config has no {name!r}; it needs seed, budget and arms")
  return default
