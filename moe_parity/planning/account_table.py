"""What every row of a table of shapes costs, and how far that is from the printed value."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from moe_parity.planning.accounting import ATTENTION_BLOCK, Cost, check_convention, cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.scaling_laws import STEP_LAW
from moe_parity.planning.shape_table import ShapeRow, architecture_of, read_table, rows_of

M_KINDS = ("forward", "train")


def account_file(
  path: str | pathlib.Path,
  convention: str,
  *,
  vocab_size: int = 0,
  attention_block: int = ATTENTION_BLOCK,
) -> list[dict]:
  """`account_table` of a CSV file; errors name the file.

  Raises:
    UserError: as `account_table` and `read_table`.
  """
  check_convention(convention)
  return account_table(
    read_table(path),
    convention,
    table=str(path),
    vocab_size=vocab_size,
    attention_block=attention_block,
  )


def account_table(
  rows: Sequence[Mapping[str, str]],
  convention: str,
  table: str = "the table",
  *,
  vocab_size: int = 0,
  attention_block: int = ATTENTION_BLOCK,
) -> list[dict]:
  """One dictionary a row, in the paper's column names.

  A table needs n_layers, d_model, n_heads or d_head, seq_len, d_ffn where a layer is dense, and for
  an MoE E, K, De, with Dse for a shared expert; see `shape_table.architecture_of`. Tokens are
  iters * batch_seqs * seq_len where those stand in the row, else D_tokens; without either,
  everything that needs tokens is None.

  Args:
    vocab_size: of rows without a column vocab_size; 0 is not known.
    attention_block: queries computed at a time, which convention `executed` asks for.
  Returns:
    per row: row (from 1), convention, layout, n_layers, n_dense_layers, seq_len; N_params,
    N_with_vocabulary (None while vocab_size is not known), Na_params, ra_pct (percent), M_forward
    and M_train (FLOPs a token), M_kind (of the printed M; train unless the row says forward),
    M_flops_per_token (that kind), D_tokens, epochs (where D_unique_tokens is printed), C_flops,
    D_over_N; lr and batch_seqs (StepLaw, unrounded: peak rate and sequences a step, not rounded to
    a multiple); alpha, zeta, gamma, beta, mu, kappa;
    printed: the table's own values of any of these; difference_pct: 100 (ours / printed - 1).
  Raises:
    UserError: naming table, row and column, for a cell that is missing, not a number or against a
      rule, and for an unknown convention; under `executed` also for a row without a vocabulary.
  """
  check_convention(convention)
  return [
    _account_row(row, convention, vocab_size, attention_block) for row in rows_of(rows, table)
  ]


def printable(accounts: Sequence[Mapping]) -> list[dict]:
  """`account_table`'s rows for a printed table: flat, equal keys, no empty column;
  `<column> off %` where the table prints a value of its own."""
  names = [name for priced in accounts for name in priced if name not in _NOT_SHOWN]
  printed = [name for priced in accounts for name in priced["difference_pct"]]
  rows = []
  for priced in accounts:
    row = {name: priced.get(name) for name in dict.fromkeys(names)}
    off = priced["difference_pct"]
    rows.append(
      row
      | {
        f"{name} off %": None if off.get(name) is None else round(off[name], 3)
        for name in dict.fromkeys(printed)
      }
    )
  used = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
  return [{name: row[name] for name in used} for row in rows]


def tokens_of(row: ShapeRow, seq_len: int) -> int | float | None:
  """Tokens seen: iters * batch_seqs * seq_len, else the printed D_tokens, else None."""
  if row.has("iters") and row.has("batch_seqs"):
    return row.count("iters", least=1) * row.count("batch_seqs", least=1) * seq_len
  return row.number_of("D_tokens") if row.has("D_tokens") else None


def _account_row(row: ShapeRow, convention: str, vocab_size: int, attention_block: int) -> dict:
  architecture = architecture_of(row, vocab_size)
  if convention == "executed" and not architecture.vocab_size:
    raise row.error(
      "vocab_size",
      "convention='executed' counts the output head's products; give the column, or one vocabulary "
      "for all rows (--vocab-size=65536)",
    )
  seq_len = row.count("seq_len", least=1)
  kind = row.text("M_kind") or "train"
  if kind not in M_KINDS:
    raise row.error("M_kind", f"{kind!r} is not known; use {' or '.join(M_KINDS)}")
  cost = cost_of(architecture, seq_len, convention, attention_block)
  has_vocabulary = architecture.vocab_size > 0
  values = (
    _shape_values(architecture, seq_len)
    | {
      "N_params": cost.num_params,
      "N_with_vocabulary": cost.num_params_with_vocabulary if has_vocabulary else None,
      "Na_params": cost.num_active_params,
      "ra_pct": 100 * cost.activation_rate,
      "M_forward": cost.forward_flops_per_token,
      "M_train": cost.train_flops_per_token,
      "M_kind": kind,
      "M_flops_per_token": (
        cost.forward_flops_per_token if kind == "forward" else cost.train_flops_per_token
      ),
      "kappa": cost.kappa,
    }
    | _run_values(row, cost, seq_len)
  )
  printed = {
    name: row.number_of(name) for name in values if name not in _DECISIONS and row.has(name)
  }
  difference = {
    name: 100 * (values[name] / value - 1)
    for name, value in printed.items()
    if value and values[name] is not None
  }
  return (
    {"row": row.number, "convention": convention}
    | values
    | {"printed": printed, "difference_pct": difference}
  )


# M_flops_per_token repeats M_forward or M_train; the two dictionaries become columns.
_NOT_SHOWN = ("convention", "printed", "difference_pct", "M_kind", "M_flops_per_token")
# What a row states about itself rather than a consequence of it.
_DECISIONS = ("layout", "n_layers", "n_dense_layers", "seq_len", "M_kind")


def _shape_values(architecture: Architecture, seq_len: int) -> dict:
  return {
    "layout": architecture.layout,
    "n_layers": architecture.num_layers,
    "n_dense_layers": architecture.num_dense_layers,
    "seq_len": seq_len,
    "alpha": architecture.ffn_ratio,
    "zeta": architecture.aspect_ratio,
    "gamma": architecture.context_ratio(seq_len),
    "beta": architecture.active_ffn_ratio,
    "mu": architecture.total_ffn_ratio,
  }


def _run_values(row: ShapeRow, cost: Cost, seq_len: int) -> dict:
  tokens = tokens_of(row, seq_len)
  names = ("D_tokens", "C_flops", "D_over_N", "lr", "batch_seqs", "epochs")
  if not tokens:
    return dict.fromkeys(names)
  law = STEP_LAW.predict(num_params=cost.num_params, num_tokens=tokens)
  epochs = None
  if row.has("D_unique_tokens"):
    unique_tokens = row.number_of("D_unique_tokens")
    if not unique_tokens:
      raise row.error("D_unique_tokens", "0 unique tokens; give the tokens that differ, or none")
    epochs = tokens / unique_tokens
  values = (
    tokens,
    float(cost.train_flops_per_token * tokens),
    tokens / cost.num_params,
    law["peak_learning_rate"],
    law["batch_tokens"] / seq_len,
    epochs,
  )
  return dict(zip(names, values, strict=True))
