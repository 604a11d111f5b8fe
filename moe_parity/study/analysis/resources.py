"""What every arm was given and what it took, relative to the dense arm: the whole bill.

FLOPs, parameters and bytes are counted from the plans (the certificate recounts them from arrays
and ledger); seconds are what finished runs measured.
"""

import statistics

from moe_parity.planning.arm_costs import RESOURCES, arm_costs, hidden_differences
from moe_parity.study import reading


def resources(study: reading.StudyRecord, baseline: str) -> dict:
  """convention (of the budget), rows (one an arm), hidden (sentences on differences from dense that
  the convention does not show), notes (how far seconds can be compared).

  A row holds name, role, the resources of `ArmCost`, seconds (steady steps of one run, the median
  over its seeds; None where no run is done), and `<resource>_ratio`: over the dense arm's, None
  without one, for seconds also None where the two ran on different machines.

  Args:
    baseline: the dense arm that others are compared with; "" is the first one at parity.
  """
  arms = study.plan.get("arms", [])
  convention = next((arm["convention"] for arm in arms if "convention" in arm), "paper")
  planned = [
    {"role": "arm", **arm} for arm in arms if "architecture" in arm and not arm.get("tunes")
  ]
  costs = arm_costs(planned, baseline)
  measured = {cost.name: _Measured(study, cost.name) for cost in costs}
  dense = next((cost.name for cost in costs if cost.relative.get("executed_flops") == 1), "")
  rows = []
  for cost in costs:
    row = {"name": cost.name, "role": cost.role}
    row |= {name: getattr(cost, name) for name in RESOURCES}
    row |= {f"{name}_ratio": cost.relative.get(name) for name in RESOURCES}
    own = measured[cost.name]
    row |= {"seconds": own.seconds, "seconds_ratio": own.over(measured.get(baseline or dense))}
    rows.append(row)
  return {
    "convention": convention,
    "rows": rows,
    "hidden": [f"{line[:1].upper()}{line[1:]}." for line in hidden_differences(costs, convention)],
    "notes": _notes(measured),
  }


class _Measured:
  """Seconds of an arm's finished runs, and the machines they ran on."""

  def __init__(self, study: reading.StudyRecord, name: str):
    runs = [run for run in study.runs if run.name == name and run.done]
    self.seconds = None
    if runs:
      self.seconds = statistics.median(_seconds(run) for run in runs)
    self.machines = {_machine(run) for run in runs}

  def over(self, other: "_Measured | None") -> float | None:
    """Seconds over another arm's, where both ran on one kind of machine."""
    if other is None or not (self.seconds and other.seconds):
      return None
    alike = len(self.machines | other.machines) == 1
    return self.seconds / other.seconds if alike else None


def _seconds(run: reading.RunRecord) -> float:
  """Of all its steps: steady ones, or as a run of an earlier version summed them up."""
  if "step_seconds" in run.result:
    return run.result["step_seconds"] * run.result["finished_step"]
  return float(run.result["seconds"])


def _machine(run: reading.RunRecord) -> str:
  """The machine in words; "" where a run of an earlier version does not say it."""
  on = run.result.get("machine")
  if not on:
    return ""
  host = f"{on['cpu']}, {on['num_cores']} cores"
  if on["platform"] == "cpu":
    return f"{on['num_devices']} of {host}" if on["num_devices"] > 1 else host
  return f"{on['num_devices']} x {on['device']} ({host})"


def _notes(measured: dict[str, _Measured]) -> list[str]:
  machines = sorted(set().union(*(own.machines for own in measured.values())))
  if len(machines) > 1:
    where = [
      f"{name} on {' and '.join(m or 'a machine not written down' for m in sorted(own.machines))}"
      for name, own in measured.items()
      if own.machines
    ]
    return [f"Seconds of different machines are not compared: {'; '.join(where)}."]
  if machines == [""]:
    return ["These runs did not write down their machine: seconds may be of several."]
  return [f"Seconds were measured on {machines[0]}."] if machines else []
