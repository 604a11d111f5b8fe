"""What the certificate of a fine-tuned run recounts: examples, scored tokens, chats.

Counts are of the rows that the train step was given, from the ledger. The checkpoint it started
from is stated by its hash, which fine-tuning compared before its first step.
"""

import math
import pathlib
from collections.abc import Iterator, Sequence

from moe_parity.data import chat_template
from moe_parity.data.ledger import COLUMNS, Ledger
from moe_parity.study.evidence import line

_SUM_TOLERANCE = 1e-9  # relative: sums of float64 over chats


def finetuning_checks(
  folder: pathlib.Path, plan: dict, result: dict, ledger: Ledger
) -> Iterator[dict]:
  """Lines of a run's certificate; raises what a damaged file raises."""
  stated, passes = plan["finetuning"], round(plan["epochs"])
  seen = ledger.by_column()
  for name in COLUMNS:
    planned = stated[name] * passes
    yield line(f"chats: {name}", planned, seen[name], planned == seen[name],
               f"rows in the ledger, over {passes} passes")  # fmt: skip
  rows = stated["chats_sha256"]
  rows_read = ledger.data["sha256"]
  yield line("chats: rows", rows[:12], rows_read[:12], rows == rows_read, "plan.json, ledger.npz")
  template = chat_template.read(folder)
  same = template is not None and template.__dict__ == stated["template"]
  words = "the planned one" if same else "another"
  yield line("chats: template", "the planned one", words, same, chat_template.FILE)
  for name, score in result["finetuning"].items():
    listed = score["examples"]
    total = math.fsum(row["nats"] for row in listed) / sum(row["num_tokens"] for row in listed)
    same = math.isclose(total, score["cross_entropy"], rel_tol=_SUM_TOLERANCE)
    yield line(f"chats: score {name}", total, score["cross_entropy"], same,
               "sum of the chats in result.json")  # fmt: skip
    number = stated["num_validation_examples"]
    yield line(f"chats: held out, {name}", number, len(listed), number == len(listed),
               "result.json")  # fmt: skip


def same_chats(runs: Sequence[tuple]) -> list[dict]:
  """Whether fine-tuned runs of a comparison read equally many examples, scored tokens and tokens,
  of the same chats, with one template, as often; [] where none was fine-tuned.

  Args:
    runs: (plan, measured, certificate) of each.
  """
  tuned = [(arm, certificate["ledger"]) for arm, _, certificate in runs if arm.get("finetuning")]
  if not tuned:
    return []
  by_column = {name: {ledger.get(name) for _, ledger in tuned}
           for name in (*COLUMNS, "num_tokens")}  # fmt: skip
  for name in ("validation_chats_sha256", "template"):
    by_column[name] = {str(arm["finetuning"][name]) for arm, _ in tuned}
  return [
    line(f"fine-tuning: one value of {name}", 1, len(values), len(values) == 1,
         "recounted from each ledger" if name in (*COLUMNS, "num_tokens") else "each plan.json")
    for name, values in by_column.items()
  ]  # fmt: skip
