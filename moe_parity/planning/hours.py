"""A device by its name: the hours that arms take on it at a stated share of its peak."""

from typing import Any

from moe_parity.errors import UserError
from moe_parity.planning.arm_costs import arm_costs
from moe_parity.planning.attention_choice import Device
from moe_parity.planning.gpu_cards import is_card, parse_host
from moe_parity.planning.tpu_slices import parse_slice

DEFAULT_SHARE = 0.4  # of a device's peak that a step reaches, where none is stated


def peak_flops(topology: str, dtype: str) -> float:
  """FLOP/s of all devices of a card, host or TPU slice in products of a dtype.

  Raises:
    UserError: no such topology, or a card without units for the dtype.
  """
  if is_card(topology):
    host = parse_host(topology)
    return host.num_devices * host.card.peak(dtype)
  slice_ = parse_slice(topology)
  return slice_.num_devices * slice_.generation.flops_per_device


def device_of(topology: str) -> Device:
  """One device of a card, host or TPU slice, as the choice of attention sees it.

  Raises:
    UserError: no such topology.
  """
  if is_card(topology):
    return parse_host(topology).card.device
  parse_slice(topology)
  return Device("tpu")


def check_share(share: float) -> float:
  """
  Raises:
    UserError: a share of the peak that is not above 0 and at most 1.
  """
  if not 0 < share <= 1:
    raise UserError(f"--share={share:g} is not above 0 and at most 1; 0.4 is 40 % of the peak")
  return share


def hours_rows(plan: Any, topology: str, share: float, dtype: str) -> list[dict[str, Any]]:
  """One row an arm: runs (seeds), and hours of one and of all at `share` of the peak.

  Hours are of the matrix products that a run executes once each way: what remat or the pass for
  balance loads computes again is not in them, as it is in no count of FLOPs of a plan.

  Args:
    plan: a `ComparisonPlan`. share: of the peak that a step reaches, above 0 and up to 1.
    dtype: of the products.
  Raises:
    UserError: a share out of range, and as `peak_flops`.
  """
  rate = check_share(share) * peak_flops(topology, dtype)
  arms = plan.to_dict()["arms"]
  executed = {cost.name: cost.executed_flops for cost in arm_costs(arms)}
  runs: dict[str, int] = {}
  for arm in arms:
    runs[arm["name"]] = runs.get(arm["name"], 0) + 1
  return [
    {
      "arm": name,
      "runs": number,
      "hours a run": executed[name] / rate / 3600,
      "hours": number * executed[name] / rate / 3600,
    }
    for name, number in runs.items()
  ]
