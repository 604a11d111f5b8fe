"""Is the lead one of the experts? What controls and ablations say of the best MoE arm's lead.

An MoE arm at small r_a is also cheaper a token than the dense arm of equal N, so it reads more
text; a dense model of its N_a reads as much. And what remains of a lead when the routed experts are
taken away from the trained model is no work of theirs.
"""

from collections.abc import Sequence

import numpy as np

from moe_parity.study import reading
from moe_parity.study.analysis import arms as averaged
from moe_parity.study.analysis.arms import Arms

RATE_FACTOR = 1.5  # learning rates this close count as the same
# `arms.verdict_of` names the sides of the main comparison; here a control stands for the MoE.
_OF_CONTROL = {"MoE better": "control better"}
_OF_MOE = {"dense better": "control better"}


def explain_lead(
  arms: Arms,
  runs: Sequence[reading.RunRecord],
  names: Sequence[str],
  moe: Sequence[int],
  base: int,
  controls: Sequence[int],
) -> dict | None:
  """`controls` of analysis.json, None without an MoE arm.

  Args:
    runs: finished runs. names: of the arms; moe, base, controls: indices of arms.
  Returns:
    best (the MoE arm of lowest BPC among those that beat dense; among those repeated where none
    does; among all where none was), its peak_learning_rate, lead (dense minus it, BPC), controls
    (a row each: name, num_params, peak_learning_rate, to_dense and moe_to_control, each with
    difference, interval, simultaneous, verdict), ablations ({name: {"cost", "lead_left"}} of the
    best arm, means over its seeds).
  """
  if not moe:
    return None
  best = _best(arms, moe, base)
  lead = float(arms.value_A[base] - arms.value_A[best])
  plans = {run.name: run.plan for run in runs}
  to_dense = averaged.differences(arms, controls, base) if controls else []
  rows = []
  for arm, row in zip(controls, to_dense, strict=True):
    against = averaged.differences(arms, [best], arm)[0]
    rows.append({
      "name": names[arm],
      "num_params": plans[names[arm]]["num_params"],
      "peak_learning_rate": plans[names[arm]]["peak_learning_rate"],
      "to_dense": _fields(row, _OF_CONTROL),
      "moe_to_control": _fields(against, _OF_MOE),
    })  # fmt: skip
  return {
    "best": names[best],
    "lead": lead,
    "peak_learning_rate": plans[names[best]]["peak_learning_rate"],
    "controls": rows,
    "ablations": _ablations([run for run in runs if run.name == names[best]], lead),
  }


def _best(arms: Arms, moe: Sequence[int], base: int) -> int:
  """The arm whose lead the verdict names: a noisier arm may have a lower mean."""
  verdicts = [row.verdict for row in averaged.differences(arms, moe, base)]
  better = [arm for arm, verdict in zip(moe, verdicts, strict=True) if verdict == "MoE better"]
  judged = [arm for arm in moe if arms.is_judged(arm, base)]
  return min(better or judged or moe, key=lambda arm: arms.value_A[arm])


def _fields(row: averaged.Difference, words: dict[str, str]) -> dict:
  return {
    "difference": row.difference,
    "interval": row.interval,
    "simultaneous": row.simultaneous,
    "verdict": words.get(row.verdict, row.verdict),
  }


def _ablations(runs: Sequence[reading.RunRecord], lead: float) -> dict[str, dict[str, float]]:
  """By how much each ablation raises the arm's BPC, and what that leaves of its lead."""
  scores = [run.result.get("ablations") or {} for run in runs]
  found = {}
  for name in scores[0] if scores else ():
    if not all(name in of_run for of_run in scores):
      continue
    costs = [
      of_run[name]["bpc"] - run.result["validation"]["bpc"]
      for run, of_run in zip(runs, scores, strict=True)
    ]
    found[name] = {"cost": float(np.mean(costs)), "lead_left": lead - float(np.mean(costs))}
  return found


def best_control(explained: dict | None) -> dict | None:
  """The control of lowest BPC."""
  rows = explained["controls"] if explained else []
  return min(rows, key=lambda row: row["to_dense"]["difference"], default=None)


def is_explained(explained: dict | None) -> bool:
  """Whether a control does as well as the best MoE arm as far as these runs can tell."""
  row = best_control(explained)
  return row is not None and row["moe_to_control"]["verdict"] != "MoE better"


def sentences(explained: dict | None, beats_dense: bool) -> list[str]:
  """What the verdict says of it; nothing where no MoE arm is below dense.

  Args:
    beats_dense: whether the best arm is better than dense by its verdict. If not there is no lead,
      only a difference, and the sentences say so.
  """
  if explained is None or explained["lead"] <= 0:
    return []
  lead, name, word = explained["lead"], explained["best"], _word(beats_dense)
  lines = []
  if removed := explained["ablations"].get("routed_removed"):
    left = removed["lead_left"]
    kept = f"{left:.4f} of it remains" if left > 0 else "nothing of it remains"
    of_what = f"Of the lead of {lead:.4f} BPC that {name} has over dense"
    if not beats_dense:
      of_what = (
        f"{name} is {lead:.4f} BPC below dense and not shown to be better; of that difference"
      )
    lines.append(
      f"{of_what}, {kept} when its routed experts are removed from the trained model (which costs"
      f" it {removed['cost']:.4f})."
    )
  if not explained["controls"]:
    lines.append(
      f"This comparison has no dense control of another N, so whether the {word} is one of"
      " the experts or of a smaller model is not shown."
    )
    return lines
  each = [
    f"{row['name']} ({row['num_params']:,} parameters) {row['to_dense']['difference']:+.4f}"
    for row in explained["controls"]
  ]
  lines.append(f"Dense controls at equal compute and data, BPC against dense: {', '.join(each)}.")
  lines.append(_conclusion(explained, best_control(explained), beats_dense))
  return lines + untuned(explained, beats_dense)


def _word(beats_dense: bool) -> str:
  return "lead" if beats_dense else "difference"


def untuned(explained: dict, beats_dense: bool) -> list[str]:
  """Says where controls learn at another rate than the arm whose lead they are to explain: a
  control at a poor rate explains too little. Nothing where each is at its own best rate."""
  if explained.get("tuned"):
    return []
  own = explained["peak_learning_rate"]
  others = [
    f"{row['name']} {row['peak_learning_rate']:.3g}"
    for row in explained["controls"]
    if not 1 / RATE_FACTOR <= row["peak_learning_rate"] / own <= RATE_FACTOR
  ]
  if not others:
    return []
  return [
    f"Controls learn at rates of their own ({', '.join(others)}; {explained['best']} {own:.3g}),"
    f" not tuned for them: at a better rate a control may explain more of the"
    f" {_word(beats_dense)}."
  ]


def _conclusion(explained: dict, row: dict, beats_dense: bool) -> str:
  name, control, word = explained["best"], row["name"], _word(beats_dense)
  gain = max(-row["to_dense"]["difference"], 0.0)
  explains = min(gain, explained["lead"])
  share = f"of the {word} of {explained['lead']:.4f} BPC, {explains:.4f} is explained by {control}"
  versus = f"{name} minus {control} is {row['moe_to_control']['difference']:+.4f} BPC"
  verdict = row["moe_to_control"]["verdict"]
  if verdict == "MoE better":
    beats = "also beats" if beats_dense else "is not shown to be better than dense and beats"
    return f"{name} {beats} {control}, the best of them: {share}, and {versus}."
  if verdict == "control better":
    return f"The {word} is not one of the experts: {control} beats {name}; {versus}."
  return (
    f"The {word} is not shown to be one of the experts: {share}, and {versus}, which these runs"
    " cannot tell from 0."
  )
