"""What every arm was given and what it took, relative to the dense arm: the whole bill.

FLOPs, parameters and bytes are counted from the plans (the certificate recounts them from arrays
and ledger); seconds are what finished runs measured, energy is those seconds times the power that
was measured or stated while they trained.
"""

import statistics

from moe_parity.planning.arm_costs import RESOURCES, arm_costs, hidden_differences
from moe_parity.study import reading


def resources(study: reading.StudyRecord, baseline: str) -> dict:
  """convention (of the budget), rows (one an arm), hidden (sentences on differences from dense that
  the convention does not show), notes (how far seconds can be compared), energy_notes (how energy
  is known, or why it is not).

  A row holds name, role, the resources of `ArmCost`, seconds (steady steps of one run, the median
  over its seeds; None where no run is done), joules (likewise; None where power is not known for
  all of them), and `<resource>_ratio`: over the dense arm's, None without one, for seconds and
  joules also None where the two ran on different machines or were measured in different ways.

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
    own, other = measured[cost.name], measured.get(baseline or dense)
    row |= {"seconds": own.seconds, "seconds_ratio": own.over(other)}
    row |= {"joules": own.joules, "joules_ratio": own.energy_over(other)}
    rows.append(row)
  return {
    "convention": convention,
    "rows": rows,
    "hidden": [f"{line[:1].upper()}{line[1:]}." for line in hidden_differences(costs, convention)],
    "notes": _notes(measured),
    "energy_notes": _energy_notes(measured),
  }


_NO_POWER = {"watts": None, "how": "not measured: these runs are of a version that did not try"}


class _Measured:
  """Seconds of an arm's finished runs, and the machines they ran on."""

  def __init__(self, study: reading.StudyRecord, name: str):
    runs = [run for run in study.runs if run.name == name and run.done]
    self.seconds = None
    if runs:
      self.seconds = statistics.median(_seconds(run) for run in runs)
    self.machines = {_machine(run) for run in runs}
    powers = [run.result.get("power") or _NO_POWER for run in runs]
    self.how = {power["how"] for power in powers}
    self.joules = None
    if runs and all(power["watts"] is not None for power in powers):
      energies = [p["watts"] * _seconds(run) for p, run in zip(powers, runs, strict=True)]
      self.joules = statistics.median(energies)

  def over(self, other: "_Measured | None") -> float | None:
    """Seconds over another arm's, where both ran on one kind of machine."""
    if other is None or not (self.seconds and other.seconds):
      return None
    alike = len(self.machines | other.machines) == 1
    return self.seconds / other.seconds if alike else None

  def energy_over(self, other: "_Measured | None") -> float | None:
    """Joules over another arm's, where both were measured in one way on one kind of machine."""
    if self.over(other) is None or not (self.joules and other.joules):
      return None
    return self.joules / other.joules if len(self.how | other.how) == 1 else None


def _seconds(run: reading.RunRecord) -> float:
  """Of all its steps: steady ones, or as a run of an earlier version summed them up."""
  if run.result.get("step_seconds") is not None:
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


def _energy_notes(measured: dict[str, _Measured]) -> list[str]:
  """How energy is known, or why it is not."""
  hows = sorted(set().union(*(own.how for own in measured.values())))
  if not hows:
    return []
  missing = [how for how in hows if how.startswith("not measured")]
  lines = []
  if known := [how for how in hows if how not in missing]:
    lines.append(f"Energy is the seconds times the mean power in training ({'; '.join(known)}).")
  if missing:
    lines.append(f"Energy: {'; '.join(missing)}. train.device_watts states the power of a device.")
  return lines
