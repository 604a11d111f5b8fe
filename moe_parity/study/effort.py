"""Was every arm tuned with the same effort? From a study's plan and the scores of its tries."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from moe_parity.study import tuning
from moe_parity.study.evidence import line
from moe_parity.training import run_folder

HOW = "plan.json; result.json of each try"
# What a try has of the arm whose learning rate it decides.
_OF_A_TRY = ("architecture", "num_unique_tokens", "batch_sequences", "num_steps", "warmup_steps",
             "final_learning_rate")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TunedArm:
  """An arm with the tries that its learning rate comes from.

  Attributes:
    plans: of its compared runs. tries: plans of its tries. scores: mean BPC of the tries' seeds by
      learning rate, rising; infinity where a try diverged.
  """

  name: str
  plans: tuple[dict, ...]
  tries: tuple[dict, ...]
  scores: Mapping[float, float]

  @property
  def rate(self) -> float:
    """The learning rate it is compared at."""
    return self.plans[0]["peak_learning_rate"]

  @property
  def edge(self) -> str:
    """lowest or highest: the end of the grid that it is at; "" inside."""
    rates = list(self.scores)
    return {rates[0]: "lowest", rates[-1]: "highest"}.get(self.rate, "") if rates else ""


def tuned_arms(arms: Sequence[dict], scores: Mapping[tuple[str, int], float]) -> list[TunedArm]:
  """The arms of a plan that are compared and known; [] where the study tunes none.

  Args:
    arms: of plan.json. scores: BPC of tries that are done, by name and seed.
  """
  tries: dict[str, list[dict]] = {}
  for arm in arms:
    if arm.get("tunes"):
      tries.setdefault(arm["tunes"], []).append(arm)
  if not tries:
    return []
  compared: dict[str, list[dict]] = {}
  for arm in arms:
    if arm["role"] not in ("check", tuning.TUNING):
      compared.setdefault(arm["name"], []).append(arm)
  return [
    TunedArm(name, tuple(plans), tuple(own := tries.get(name, [])), _by_rate(own, scores))
    for name, plans in compared.items()
  ]


def _by_rate(tries: Sequence[dict], scores: Mapping[tuple[str, int], float]) -> dict[float, float]:
  by_rate: dict[float, list[float]] = {}
  for arm in sorted(tries, key=lambda arm: arm["peak_learning_rate"]):
    # The arm itself is planned only once all its tries are known: one without a score diverged.
    score = scores.get((arm["name"], arm["seed"]), math.inf)
    by_rate.setdefault(arm["peak_learning_rate"], []).append(score)
  return {rate: math.fsum(values) / len(values) for rate, values in by_rate.items()}


def effort_checks(tuned: Sequence[TunedArm]) -> Iterable[dict]:
  """Lines of the study's certificate: as many tries as others, of the same rates, all tokens, the
  arm's own shape, the best one taken."""
  most = max((len(arm.tries) for arm in tuned), default=0)
  every = sorted({rate for arm in tuned for rate in arm.scores})
  for arm in tuned:
    own = len(arm.tries)
    yield line(f"{arm.name}: tries of its learning rate", most, own, own == most, HOW)
    tokens, wanted = sorted({t["num_tokens"] for t in arm.tries}), arm.plans[0]["num_tokens"]
    yield line(f"{arm.name}: tokens of each try", wanted, tokens, tokens == [wanted], HOW)
    rates = list(arm.scores)
    yield line(f"{arm.name}: learning rates tried", every, rates, rates == every, HOW)
    planned = {name: arm.plans[0][name] for name in _OF_A_TRY}
    changed = [t["name"] for t in arm.tries if {name: t[name] for name in _OF_A_TRY} != planned]
    words = ", ".join(changed[:3]) or "the arm's"
    yield line(f"{arm.name}: shape and steps of each try", "the arm's", words, not changed, HOW)
    if arm.scores:
      best = tuning.best_rate(list(arm.scores), list(arm.scores.values()))
      rates = sorted({plan["peak_learning_rate"] for plan in arm.plans})
      yield line(f"{arm.name}: learning rate of its best try", best, rates, rates == [best], HOW)


def scores_of_tries(places: Iterable[tuple[dict, pathlib.Path]]) -> dict[tuple[str, int], float]:
  """BPC of the tries that are done, by name and seed.

  Args:
    places: plan and run folder of each run of a study.
  """
  scores = {}
  for arm, folder in places:
    if arm.get("tunes") and (folder / run_folder.RESULT).exists():
      bpc = run_folder.read_json(folder / run_folder.RESULT)["validation"]["bpc"]
      scores[arm["name"], arm["seed"]] = bpc if math.isfinite(bpc) else math.inf
  return scores


def report(tuned: Sequence[TunedArm], own_documents: int = 0) -> dict | None:
  """`tuning` of analysis.json: seeds of the tries, and a row for each arm with its rates, their BPC
  (None: diverged), the one taken, and the end of the grid it is at; None where none is tuned.

  Args:
    own_documents: validation documents that scored the tries and not the comparison; 0: the same.
  """
  if not tuned:
    return None
  rows = [
    {
      "name": arm.name,
      "role": arm.plans[0]["role"],
      "num_tries": len(arm.tries),
      "tries": [
        {"peak_learning_rate": rate, "bpc": bpc if math.isfinite(bpc) else None}
        for rate, bpc in arm.scores.items()
      ],
      "best": arm.rate,
      "edge": arm.edge,
    }
    for arm in tuned
  ]
  seeds = sorted({t["seed"] for arm in tuned for t in arm.tries})
  return {
    "seeds": seeds,
    "equal": len({row["num_tries"] for row in rows}) == 1,
    "own_documents": own_documents,
    "arms": rows,
  }


def sentences(found: dict | None) -> list[str]:
  """What the verdict says of it; `edges` are among them."""
  if not found:
    return []
  rates = sorted({t["peak_learning_rate"] for row in found["arms"] for t in row["tries"]})
  listed, seeds = ", ".join(f"{rate:g}" for rate in rates), ", ".join(map(str, found["seeds"]))
  every = (
    f"Every arm and control is compared at its own best of the same learning rates ({listed}), each"
    f" tried with all tokens on seed {seeds}, which draws other weights and text and is not"
    " compared."
  )
  if not found["equal"]:
    counts = ", ".join(f"{row['name']} {row['num_tries']}" for row in found["arms"])
    every = f"Arms were not tuned with equal effort; tries of a learning rate: {counts}."
  if own := found.get("own_documents"):
    every += f" Tries are scored on {own} validation documents that the comparison does not use."
  return [every, *same_documents(found), *edges(found)]


def same_documents(found: dict | None) -> list[str]:
  """Says where tries and comparison share their documents."""
  if not found or found.get("own_documents"):
    return []
  return [
    "Tries of learning rates are scored on the validation documents of the comparison, so all its"
    " scores are a little too good, those of controls and dense arms too"
    " (evaluation.tuning_share sets documents aside)."
  ]


def edges(found: dict | None) -> list[str]:
  """Names the arms whose best rate is at an end of the grid."""
  at = [row for row in found["arms"] if row["edge"]] if found else []
  if not at:
    return []
  each = ", ".join(f"{row['name']} at the {row['edge']}, {row['best']:g}" for row in at)
  return [
    f"Best at an end of the learning rates tried: {each}. A rate beyond it may do better still."
  ]
