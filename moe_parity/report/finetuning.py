"""The page's section on fine-tuning: which candidate every arm kept, and what it scores."""

import html
import pathlib

from moe_parity.finetuning.sweep import SWEEP, label
from moe_parity.report.markup import Section, table
from moe_parity.report.table_formats import Column, Table, interval, percent, signed
from moe_parity.stored import read as stored

ABOUT = (
  "Every arm was fine-tuned on the same chats, with each of the candidates (learning rate as a"
  " multiple of its own pretraining peak, passes over the chats) {names}, and keeps the one with"
  " the lowest loss on held-out chats. Bits per character of answers, their end tokens paid for;"
  " text is the held-out text of pretraining. The scores are stated on the chats that the"
  " candidates were chosen by. Certificate: {certificate}."
)


def read(study_folder: pathlib.Path) -> dict:
  """finetuning.json of a study; {} where its arms were not fine-tuned, or not all candidates are
  there.

  Raises:
    UserError: it is damaged.
  """
  path = pathlib.Path(study_folder) / SWEEP
  value = stored.read_json(path, "run the study again to write it") if path.is_file() else {}
  return value if value.get("arms") else {}


def finetuned(tuned: dict) -> Table:
  """A row an arm and seed."""
  bits = lambda value: f"{value:.4f}"  # noqa: E731
  columns = (
    Column("name", "arm", number=False),
    Column("seed", "seed"),
    Column("activation_rate", "r_a %", percent),
    Column("chosen", "kept", number=False),
    Column("edges", "at an end of the grid", "; ".join, number=False, wrap=True),
    Column("chats_before", "chats before", bits),
    Column("chats_after", "chats after", bits),
    Column("text_bpc_before", "text BPC before", bits),
    Column("text_bpc_after", "text BPC after", bits),
  )
  rows = [
    arm | {"name": label(arm)} | {f"chats_{when}": arm[when]["bpc"] for when in ("before", "after")}
    for arm in tuned.get("chosen", [])
  ]
  return Table("finetuned", "After fine-tuning on chats", columns, rows)


def compared(tuned: dict) -> Table:
  """MoE minus dense on held-out chats."""
  columns = (
    Column("name", "arm", number=False),
    Column("difference", "minus dense (bits per character)", signed),
    Column("simultaneous", "95 % interval, all at once", interval),
    Column("verdict", "verdict", number=False),
  )
  rows = tuned.get("chats", {}).get("comparisons", [])
  return Table("finetuned_comparisons", "MoE minus dense on held-out chats", columns, rows)


def section(tuned: dict) -> list[Section]:
  """Nothing where there was no such stage."""
  if not tuned:
    return []
  words = {True: "passed", False: "failed", None: "not whole yet"}[tuned["passed"]]
  about = ABOUT.format(names=", ".join(tuned["candidates"]), certificate=words)
  body = f"<p>{html.escape(about)}</p>" + table(compared(tuned), "nothing to compare yet")
  body += table(finetuned(tuned), "no arm has tried all yet")
  return [Section("After fine-tuning on chats", body)]
