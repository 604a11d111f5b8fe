"""Checks a whole config before anything is prepared, derived or compiled from it.

Every field by its row of the table, then the rules that tie fields together and need no plan. Rules
about arms and their shapes follow where they are derived (`plan.make_plan`).
"""

from __future__ import annotations

from typing import Any

from moe_parity.errors import UserError
from moe_parity.fields.check import check_fields, check_values, get
from moe_parity.fields.choices import ROPE_BASE
from moe_parity.planning.domain_shares import read_shares
from moe_parity.planning.mesh_sizes import read_mesh


def check_config(config: Any) -> None:
  """Refuses a config that could not be trained or scored: what `plan`, `train`, `study` and
  `evaluate` check first.

  Args:
    config: a mapping, a config dictionary or a plain object; sections may be missing.
  Raises:
    UserError: a field without a row in the table, a value that breaks its row, or two that
      contradict each other.
  """
  check_fields(config)
  read_shares(get(get(config, "data", {}), "weights", ""))
  if mesh := get(config, "mesh", None):
    read_mesh(mesh)
  if model := get(config, "model", None):
    check_rope_base(get(model, "rope_base", ROPE_BASE), get(model, "position", "alibi"))
  if evaluation := get(config, "evaluation", None):
    mode, stride = get(evaluation, "mode", "document"), get(evaluation, "stride", 0)
    check_stride(mode, stride, get(get(config, "budget", {}), "seq_len", 0))
    rates = get(get(config, "study", {}), "learning_rate_grid", ())
    check_tuning_share(get(evaluation, "tuning_share", 0.0), mode, rates)


def check_rope_base(base: float, position: str) -> None:
  """
  Raises:
    UserError: a base for a model that has no rotary positions.
  """
  if base != ROPE_BASE and position != "rope":
    raise UserError(
      f'model.rope_base={base:g} belongs to position="rope" and model.position={position!r}; set'
      f" one of the two, or leave rope_base at {ROPE_BASE:g}"
    )


def check_scoring(
  mode: str, seq_len: int, batch_sequences: int, stride: int, max_tokens: int
) -> None:
  """Refuses what `evaluation/bits_per_character.py` cannot score.

  Raises:
    UserError: a value out of its range, or a stride that does not go with the mode.
  """
  given = dict(mode=mode, batch_sequences=batch_sequences, stride=stride, max_tokens=max_tokens)
  check_values("evaluation", given, "evaluation")
  check_values("budget", {"seq_len": seq_len}, "budget")
  check_stride(mode, stride, seq_len)


def check_tuning_share(share: float, mode: str, rates: Any) -> None:
  """
  Args:
    rates: study.learning_rate_grid.
  Raises:
    UserError: documents set aside for tries where there are none, or where windows are scored.
  """
  if share and not rates:
    raise UserError(
      f"evaluation.tuning_share={share} without tries of learning rates, which alone would use"
      " those documents; set study.learning_rate_grid, or use 0"
    )
  if share and mode == "packed":
    raise UserError(
      f"evaluation.tuning_share={share} with mode='packed', which scores windows and not documents;"
      " use mode='document', or 0"
    )


def check_stride(mode: str, stride: int, seq_len: int) -> None:
  """
  Args:
    seq_len: 0 where it is not known.
  Raises:
    UserError: a stride that does not go with the mode.
  """
  if mode == "strided" and not 1 <= stride <= (seq_len or stride):
    raise UserError(
      f"evaluation.stride={stride} with mode='strided' does not lie in 1..{seq_len or '(seq_len)'},"
      " the tokens of a sequence; half of them is usual"
    )
  if mode != "strided" and stride:
    raise UserError(
      f"evaluation.stride={stride} is for mode='strided', the mode is {mode!r}; use stride=0"
    )
