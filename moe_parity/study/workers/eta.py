"""What a study has yet to do, with FLOPs and hours, before anything is trained."""

from collections.abc import Callable, Sequence

from moe_parity.console import duration
from moe_parity.planning.arm_costs import executed_flops
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.study.comparisons import Results
from moe_parity.study.folder import StudyFolder, Task

HOUR = 3600.0


def device_flops(arm: ArmPlan) -> int | float:
  """FLOPs a device spends on an arm: every matrix product, whatever C counts."""
  return executed_flops(arm.to_dict())


def speeds(study: StudyFolder, tasks: Sequence[Task]) -> dict[str, float]:
  """FLOP/s by kind of arm, over compiling and training, from the study's finished runs."""
  spent: dict[str, list[float]] = {}
  for task in tasks:
    result = Results(study.folder).get(task.arm.name, task.arm.seed, task.comparison.name)
    if result is not None:
      total = spent.setdefault(task.arm.kind, [0.0, 0.0])
      total[0] += device_flops(task.arm)
      total[1] += result["seconds"] + (result.get("compile_seconds") or 0.0)
  return {kind: flops / seconds for kind, (flops, seconds) in spent.items()}


def remaining_runs(
  study: StudyFolder, tasks: Sequence[Task], peak: Callable[[], float]
) -> tuple[list[dict], list[str]]:
  """A row a run, and where the hours come from.

  Hours rest on finished runs of the same kind in this folder, or of the other kind; without any, on
  the fastest matrix product of this device (`peak`, FLOP/s), which no training reaches: then they
  are a lower bound.
  """
  measured = speeds(study, tasks)
  notes = [f"{kind}: {rate:.3g} FLOP/s, from finished runs" for kind, rate in measured.items()]
  bound = not measured
  if bound:
    rate = peak()
    notes = [f"no run is finished: a lower bound, at the {rate:.3g} FLOP/s of matrix products"]
    measured = {"peak": rate}
  rows = []
  for task in tasks:
    arm, status = task.arm, study.status(task.run)[0]
    rate = measured.get(arm.kind) or min(measured.values())
    rows.append({
      "comparison": task.comparison.name,
      "arm": arm.name,
      "seed": arm.seed,
      "status": "to do" if status == "pending" else status,
      "steps": arm.num_steps,
      "tokens": arm.num_tokens,
      "FLOPs": float(arm.train_flops),
      "hours": 0.0 if status == "done" else device_flops(arm) / rate / HOUR,
    })  # fmt: skip
  left = sum(row["hours"] for row in rows)
  missing = sum(row["status"] != "done" for row in rows)
  word = "at least" if bound else "about"
  notes.append(f"{missing} of {len(rows)} runs are left, {word} {duration(left)} on one device")
  return rows, notes
