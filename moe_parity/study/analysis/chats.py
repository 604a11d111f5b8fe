"""Who answers held-out chats best after fine-tuning: MoE arms against dense, with intervals.

A chat is what a document is elsewhere: all arms are scored on the same chats, which are drawn anew
together (`document_noise`), and seeds enter as in every comparison (`seed_noise`). The candidates
of each arm were chosen on these chats, with equal effort, which flatters all arms a little.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_parity.study.analysis import arms as averaged
from moe_parity.study.analysis.arms import Scores


class TunedRun(NamedTuple):
  """A fine-tuned run: `name` of its arm, `score` as `finetuning.chat_scores` gives it."""

  name: str
  kind: str
  role: str
  seed: int
  score: dict


def compare(runs: Sequence[TunedRun]) -> dict:
  """MoE arms minus dense in bits a character of the answers.

  Returns:
    {"baseline": the dense arm with the lowest score ("" without one), "num_chats", "arms":
    [{"name", "num_seeds", "bpc", "interval"}], "comparisons": [{"name", "difference", "interval"
    (by itself), "simultaneous", "verdict"}]}; intervals are None where nothing is known of them.
  """
  runs = [run for run in runs if run.score.get("examples")]
  digests = {tuple(row["digest"] for row in run.score["examples"]) for run in runs}
  if len(digests) != 1:  # nothing yet, or other chats: the certificate says so
    return {"baseline": "", "num_chats": 0, "arms": [], "comparisons": []}
  names = list(dict.fromkeys(run.name for run in runs))
  arms = averaged.average(_scores(runs, names))
  own = arms.own_intervals() if arms.sources else None
  first = [next(run for run in runs if run.name == name) for name in names]
  parity = [a for a, run in enumerate(first) if run.role == "arm"]
  dense = [a for a in parity if first[a].kind == "dense"]
  moe = [a for a in parity if first[a].kind == "moe"]
  base = min(dense, key=lambda a: arms.value_A[a], default=None)
  found = averaged.differences(arms, moe, base) if moe and base is not None else []
  return {
    "baseline": "" if base is None else names[base],
    "num_chats": len(next(iter(digests))),
    "arms": [
      {
        "name": name,
        "num_seeds": int(arms.num_seeds_A[a]),
        "bpc": float(arms.value_A[a]),
        "interval": None if own is None else own[:, a].tolist(),
      }
      for a, name in enumerate(names)
    ],
    "comparisons": [
      {
        "name": names[a],
        "difference": row.difference,
        "interval": row.interval,
        "simultaneous": row.simultaneous,
        "verdict": row.verdict,
      }
      for a, row in zip(moe, found, strict=False)
    ],
  }


def _scores(runs: Sequence[TunedRun], names: list[str]) -> Scores:
  rows = [run.score["examples"] for run in runs]
  return Scores(
    value_R=np.array([run.score["nats"] / math.log(2) / run.score["num_chars"] for run in runs]),
    arm_R=np.array([names.index(run.name) for run in runs]),
    seed_R=np.array([run.seed for run in runs]),
    nats_RN=np.array([[row["nats"] for row in examples] for examples in rows], float),
    units_N=np.array([row["num_chars"] for row in rows[0]], float),
    domain_N=np.full(len(rows[0]), ""),
    is_dense_A=np.array(
      [next(r.kind for r in runs if r.name == name) == "dense" for name in names]
    ),
  )
