"""What gcloud's lists say about our slices, and what follows from each state. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from moe_parity.launch.tpu_requests import LABEL, PLACE


class Held(NamedTuple):
  """One slice that is listed. `expires` is seconds since 1970, 0 where no label says it; `place`
  names the study's folder, "" where no label does."""

  name: str
  state: str
  study: str
  owner: str
  expires: int
  api: str
  place: str = ""


# A state, what it means, and whether the request is over: over, it only uses up quota.
STATES = {
  "CREATING": ("the request is being made", False),
  "ACCEPTED": ("waits for chips, which cost nothing yet", False),
  "WAITING_FOR_RESOURCES": ("waits for chips, which cost nothing yet", False),
  "PROVISIONING": ("the chips are being set up", False),
  "ACTIVE": ("runs, and is paid for", False),
  "SUSPENDING": ("its chips are being taken away", False),
  "SUSPENDED": ("its chips were taken away; 'up' again asks for new ones", True),
  "FAILED": ("got no chips in time, or was refused; 'up' again asks anew", True),
  "DELETING": ("is being deleted", False),
}


def meaning(state: str) -> str:
  """What a state means to the person who pays."""
  return STATES.get(state, (f"a state that this version does not know: {state}", False))[0]


def is_over(held: Held) -> bool:
  """Whether a request can never run again."""
  return STATES.get(held.state, ("", False))[1]


def read(api: str, answers: Sequence[list]) -> list[Held]:
  """Our slices in the answers to `tpu_requests.listing`, by name."""
  found = _read_queued(answers[0]) if api == "tpu" else _read_groups(*answers)
  return sorted(found, key=lambda held: held.name)


def _read_queued(requests: list) -> list[Held]:
  found = []
  for request in requests:
    node = request.get("tpu", {}).get("nodeSpec", [{}])[0].get("node", {})
    state = request.get("state", {}).get("state", "UNKNOWN")
    name = request["name"].split("/")[-1]
    if LABEL in node.get("labels", {}):
      found.append(_held(name, state, node["labels"], "tpu"))
  return found


def _read_groups(templates: list, groups: list) -> list[Held]:
  by_name = {group["name"]: group for group in groups}
  return [
    _held(template["name"], _group_state(by_name.get(template["name"])), labels, "gce")
    for template in templates
    if LABEL in (labels := template.get("properties", {}).get("labels", {}))
  ]


def _group_state(group: Mapping | None) -> str:
  """An instance group in the words of queued resources."""
  if group is None:  # the template alone is left
    return "FAILED"
  wanted, there = int(group.get("targetSize", 0)), int(group.get("size", 0))
  if group.get("status", {}).get("isStable"):
    return "ACTIVE" if there >= wanted > 0 else "SUSPENDED"
  return "PROVISIONING" if wanted else "DELETING"


def _held(name: str, state: str, labels: Mapping[str, str], api: str) -> Held:
  expires = labels.get("expires", "0")
  return Held(
    name,
    state,
    labels[LABEL],
    labels.get("owner", ""),
    int(expires) if expires.isdigit() else 0,
    api,
    labels.get(PLACE, ""),
  )


def why_sweep(held: Held, now: int | float) -> str:
  """Why a slice is to be removed, "" where it is not."""
  if held.state == "DELETING":
    return ""
  if is_over(held):
    return meaning(held.state).split(";")[0]
  if held.expires and held.expires < now:
    return f"expired {(now - held.expires) / 3600:.1f} h ago"
  return ""
