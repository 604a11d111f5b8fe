"""The learning rates that every arm tried: a table, and what to know of it."""

from moe_parity.report.markup import Section, paragraphs, table
from moe_parity.report.table_formats import Column, Table, fixed
from moe_parity.study import effort


def learning_rates(report: dict) -> Table:
  """A row for each arm: BPC at each rate, the one taken, and how often it was tried."""
  tuning = report["tuning"] or {"arms": []}
  rates = sorted({t["peak_learning_rate"] for row in tuning["arms"] for t in row["tries"]})
  rows = [
    {
      "name": row["name"],
      "role": row["role"],
      **{f"rate_{t['peak_learning_rate']:g}": t["bpc"] for t in row["tries"]},
      "best": row["best"],
      "edge": row["edge"],
      "num_tries": row["num_tries"],
    }
    for row in tuning["arms"]
  ]
  return Table(
    "learning_rates",
    "BPC of every arm at every learning rate",
    (
      Column("name", "arm", number=False),
      Column("role", "role", number=False),
      *(Column(f"rate_{rate:g}", f"{rate:g}", fixed(4)) for rate in rates),
      Column("best", "taken", lambda rate: f"{rate:g}"),
      Column("edge", "at the grid's end", number=False),
      Column("num_tries", "tries"),
    ),
    [{**dict.fromkeys(f"rate_{rate:g}" for rate in rates), **row} for row in rows],
  )


def section(report: dict, tables: dict[str, Table]) -> list[Section]:
  """Nothing where a study tunes no learning rates."""
  if not report["tuning"]:
    return []
  words = paragraphs(effort.sentences(report["tuning"]))
  return [Section("Learning rates", words + table(tables["learning_rates"]))]
