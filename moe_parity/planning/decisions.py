"""What a config decides, read and checked, before anything is derived from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from moe_parity.fields.check import get
from moe_parity.fields.choices import BYTE_VOCABULARY
from moe_parity.planning.accounting import ATTENTION_BLOCK
from moe_parity.planning.budget import ArmSpec, Budget, read_arms, read_budget
from moe_parity.planning.config_rules import check_config
from moe_parity.planning.domain_shares import Shares, read_shares


@dataclasses.dataclass(frozen=True)
class Decisions:
  """Budget, arms and what else of a config a plan rests on.

  Attributes:
    vocab_size: 0 while it is not known; is_vocab_assumed where no token store said it.
    position: how attention knows positions. attention_block: queries it computes at a time.
    data_seed: of the text drawn and its order; draw_per_seed: whether an arm's seed is added to it.
    shares: of each domain, None without data.weights. max_epochs: times any data may be read.
  """

  budget: Budget
  specs: list[ArmSpec]
  tokenizer: str
  vocab_size: int
  is_vocab_assumed: bool
  position: str
  attention_block: int
  data_seed: int
  draw_per_seed: bool
  shares: Shares | None
  max_epochs: float | int
  final_learning_rate: float
  warmup_steps: int
  warmup_share: int | float


def read_decisions(config: Any, vocab_size: int = 0) -> Decisions:
  """Reads a config: a mapping, a config dictionary or a plain object; see `plan.make_plan`.

  Args:
    vocab_size: of the token store in use, 0 while there is none.
  Raises:
    UserError: a section that is missing, or a field against a rule.
  """
  check_config(config)
  data, optimizer = get(config, "data", {}), get(config, "optimizer", {})
  model, tokenizer = get(config, "model", {}), str(get(data, "tokenizer", ""))
  return Decisions(
    budget=read_budget(get(config, "budget")),
    specs=read_arms(get(config, "arms"), get(config, "seed", 0)),
    tokenizer=tokenizer,
    vocab_size=vocab_size or _vocabulary(tokenizer),
    is_vocab_assumed=not vocab_size,
    position=get(model, "position", "alibi"),
    attention_block=get(model, "attention_block", ATTENTION_BLOCK),
    data_seed=get(data, "seed", 0),
    draw_per_seed=get(data, "draw_per_seed", True),
    shares=read_shares(get(data, "weights", "")),
    max_epochs=get(data, "max_epochs", 0.0),
    final_learning_rate=float(get(optimizer, "final_learning_rate", 1e-5)),
    warmup_steps=get(optimizer, "warmup_steps", 2000),
    warmup_share=get(optimizer, "warmup_share", 0.0),
  )


def _vocabulary(tokenizer: str) -> int:
  """Vocabulary of a tokenizer by its name, 0 where only its file would tell."""
  if tokenizer == "bytes":
    return BYTE_VOCABULARY
  size = tokenizer.removeprefix("bpe:")
  return int(size) if tokenizer.startswith("bpe:") and size.isdigit() else 0
