"""The gcloud commands that ask for TPU slices, list them and delete them. Pure functions.

Two APIs. `tpu`: the queued resources of the Cloud TPU API (v5e, v5p, v6e), which Google serves
but no longer develops. `gce`: an instance group of Compute Engine with a workload policy (v5p, v6e,
tpu7x). Either way a slice is one request: slices are independent worlds that share a study.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from moe_parity.launch.accelerators import SliceType
from moe_parity.launch.commands import Command, command

PLACE = "place"  # the label with the hash of a study's folder
LABEL = "moe-parity"  # its value is the study's name: this is how we know what is ours


class Request(NamedTuple):
  """One slice to ask for.

  Attributes:
    name: of the request and of the slice: the study's name and a number.
    image: `project/family` of a Compute Engine image with TPU drivers; api `gce` only.
    hours: that the slice may run from its first boot; then it deletes itself.
    wait_hours: that the request may wait for chips.
    labels, metadata: what the request carries, see `labels_of` and `tpu_host.sh`.
  """

  name: str
  slice_type: SliceType
  api: str
  project: str
  zone: str
  spot: bool
  reserved: bool
  hours: int | float
  wait_hours: int | float
  labels: Mapping[str, str]
  metadata: Mapping[str, str]
  startup_script: str
  service_account: str = ""
  network: str = ""
  subnetwork: str = ""
  image: str = ""


def labels_of(study: str, owner: str, expires: int, commit: str, workdir: str) -> dict[str, str]:
  """What tells a request of ours from others': study, owner, when it must be gone, commit, and a
  hash of the study's folder, for two folders may give one name."""
  place = hashlib.sha256(workdir.encode()).hexdigest()[:16]
  labels = {LABEL: study, "owner": owner, "expires": str(expires), "commit": commit[:12]}
  return labels | {PLACE: place}


def gcloud_dict(values: Mapping[str, str]) -> str:
  """A gcloud dictionary flag; with a delimiter that no value has, where one has a comma.

  gcloud reads `^|^a=1|b=2` as pairs divided by `|` (gcloud topic escaping).
  """
  delimiter = next(d for d in (",", "|", ";", "~", "%%", "@@") if d not in "".join(values.values()))
  pairs = delimiter.join(f"{name}={value}" for name, value in values.items())
  return pairs if delimiter == "," else f"^{delimiter}^{pairs}"


def region_of(zone: str) -> str:
  """us-east5-b -> us-east5."""
  return zone.rsplit("-", 1)[0]


def create(request: Request) -> list[Command]:
  """The commands that ask for one slice, in order."""
  return _create_queued(request) if request.api == "tpu" else _create_group(request)


def _where(project: str, zone: str) -> tuple[str, str]:
  return f"--project={project}", f"--zone={zone}"


def _flag(name: str, value: str) -> str:
  return f"--{name}={value}" if value else ""


def _create_queued(r: Request) -> list[Command]:
  return [
    command(
      *("gcloud", "compute", "tpus", "queued-resources", "create", r.name),
      *_where(r.project, r.zone),
      f"--node-id={r.name}",
      f"--accelerator-type={r.slice_type.accelerator_type}",
      f"--runtime-version={r.slice_type.chip.runtime}",
      "--spot" if r.spot else "--reserved" if r.reserved else "",
      f"--valid-until-duration={_seconds(r.wait_hours)}",
      f"--labels={gcloud_dict(r.labels)}",
      f"--metadata={gcloud_dict(r.metadata)}",
      f"--metadata-from-file=startup-script={r.startup_script}",
      _flag("service-account", r.service_account),
      _flag("network", r.network),
      _flag("subnetwork", r.subnetwork),
      "--quiet",
    )
  ]


def _create_group(r: Request) -> list[Command]:
  hosts, image = r.slice_type.num_hosts, r.image.split("/")
  policy = f"projects/{r.project}/regions/{region_of(r.zone)}/resourcePolicies/{r.name}"
  template = command(
    *("gcloud", "compute", "instance-templates", "create", r.name, f"--project={r.project}"),
    f"--machine-type={r.slice_type.machine_type}",
    f"--image-project={image[0]}",
    f"--image-family={image[-1]}",
    "--boot-disk-size=100GB",
    "--maintenance-policy=TERMINATE",
    "--provisioning-model=SPOT" if r.spot else "--reservation-affinity=any" if r.reserved else "",
    f"--max-run-duration={_seconds(r.hours)}",
    "--instance-termination-action=DELETE",
    f"--labels={gcloud_dict(r.labels)}",
    f"--metadata={gcloud_dict(r.metadata)}",
    f"--metadata-from-file=startup-script={r.startup_script}",
    "--scopes=cloud-platform",
    _flag("service-account", r.service_account),
    _flag("network", r.network),
    _flag("subnet", r.subnetwork),
    "--quiet",
  )
  group = command(
    *("gcloud", "compute", "instance-groups", "managed", "create", r.name),
    *_where(r.project, r.zone),
    f"--size={hosts}",
    f"--template={r.name}",
    f"--workload-policy={policy}" if hosts > 1 else "",
    "--default-action-on-vm-failure=do-nothing",
    "--quiet",
  )
  wiring = command(
    *("gcloud", "compute", "resource-policies", "create", "workload-policy", r.name),
    *(f"--project={r.project}", f"--region={region_of(r.zone)}"),
    *("--type=HIGH_THROUGHPUT", f"--accelerator-topology={r.slice_type.topology}", "--quiet"),
  )
  return [*([wiring] if hosts > 1 else []), template, group]


def delete(name: str, api: str, project: str, zone: str) -> list[Command]:
  """The commands that delete one slice and everything that was made for it."""
  if api == "tpu":
    return [
      command(
        *("gcloud", "compute", "tpus", "queued-resources", "delete", name),
        *_where(project, zone),
        *("--force", "--async", "--quiet"),
      )
    ]
  return [
    command(
      *("gcloud", "compute", "instance-groups", "managed", "delete", name),
      *(*_where(project, zone), "--quiet"),
    ),
    command(
      *("gcloud", "compute", "instance-templates", "delete", name),
      *(f"--project={project}", "--quiet"),
    ),
    command(
      *("gcloud", "compute", "resource-policies", "delete", name),
      *(f"--project={project}", f"--region={region_of(zone)}", "--quiet"),
    ),
  ]


def listing(api: str, project: str, zone: str) -> list[Command]:
  """The commands whose answers `tpu_states.read` reads."""
  if api == "tpu":
    line = ("gcloud", "compute", "tpus", "queued-resources", "list", *_where(project, zone))
    return [command(*line, "--format=json")]
  return [
    command(
      *("gcloud", "compute", "instance-templates", "list", f"--project={project}"), "--format=json"
    ),
    command(
      *("gcloud", "compute", "instance-groups", "managed", "list", f"--project={project}"),
      *(f"--zones={zone}", "--format=json"),
    ),
  ]


def hosts_of(name: str, project: str, zone: str) -> Command:
  """The machines of an instance group."""
  return command(
    *("gcloud", "compute", "instance-groups", "managed", "list-instances", name),
    *(*_where(project, zone), "--format=value(name)"),
  )


def ssh(target: str, api: str, project: str, zone: str, host: str, line: str) -> Command:
  """A shell on a host, or one command on it. `host` is a number or `all` (api tpu), else unused."""
  if api == "tpu":
    words = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", target, *_where(project, zone))
    return command(*words, f"--worker={host}", _flag("command", line))
  words = ("gcloud", "compute", "ssh", target, *_where(project, zone))
  return command(*words, _flag("command", line))


def _seconds(hours: int | float) -> str:
  return f"{round(hours * 3600)}s"
