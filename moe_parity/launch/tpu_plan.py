"""What `tpu.sh up` would do: one request a slice, what the hosts read, what it may cost. Pure."""

import argparse
import os
import re
import shlex
import tempfile
from collections.abc import Sequence

from moe_parity.errors import UserError
from moe_parity.launch import tpu_requests
from moe_parity.launch.accelerators import slice_type
from moe_parity.launch.commands import (
  ROOT,
  Command,
  cloud_name,
  command,
  has_option,
  option_of,
  owner,
)
from moe_parity.launch.tpu_requests import Request


def plan(args: argparse.Namespace, words: Sequence[str], commit: str, now: int) -> list[Request]:
  """The requests of `up`: one a slice.

  Raises:
    UserError: something in the options or the command cannot work on slices.
  """
  wanted, workdir = slice_type(args.type), option_of(words, "workdir").rstrip("/")
  if not re.match(r"gs://[^/]+/.", workdir):
    raise UserError(
      f"--workdir={workdir}: the hosts of a slice share no disk; use gs://BUCKET/NAME"
    )
  for option in ("worker", "coordinator"):
    if has_option(words, option):
      raise UserError(f"--{option}: every slice gets its own; leave it out")
  if args.api == "tpu" and not wanted.chip.runtime:
    raise UserError(f"--type={args.type}: the Cloud TPU API has no {wanted.chip.name}; --api=gce")
  if args.api == "gce" and not wanted.chip.gce:
    raise UserError(
      f"--type={args.type}: instance groups have no {wanted.chip.name}; leave --api=gce out"
    )
  if args.api == "gce" and args.image.count("/") != 1:
    raise UserError(
      f"--image={args.image!r}: --api=gce needs the image of the hosts as PROJECT/FAMILY; Google"
      " lists those with TPU drivers under docs.cloud.google.com/compute/docs/tpus"
    )
  if args.slices < 1 or args.hours <= 0 or args.wait_hours <= 0:
    raise UserError("--slices, --hours and --wait-hours must be above zero")
  study = cloud_name(args.name or workdir.split("/")[-1])
  expires = int(now + 3600 * (args.hours + args.wait_hours))
  labels = tpu_requests.labels_of(study, owner(), expires, commit, workdir)
  return [
    Request(
      name=f"{study}-{k}",
      slice_type=wanted,
      labels=labels,
      metadata=metadata(f"{study}-{k}", args, words, workdir, commit, wanted.num_hosts, expires),
      startup_script=str(ROOT / "launch/tpu_host.sh"),
      **{
        field: getattr(args, field)
        for field in ("api", "project", "zone", "spot", "reserved", "hours", "wait_hours", "image",
                      "service_account", "network", "subnetwork")
      },
    )
    for k in range(1, args.slices + 1)
  ]  # fmt: skip


def metadata(
  name: str,
  args: argparse.Namespace,
  words: Sequence[str],
  workdir: str,
  commit: str,
  num_hosts: int,
  expires: int,
) -> dict[str, str]:
  """What `tpu_host.sh` reads on each host."""
  values = {
    "name": name,
    "api": args.api,
    "project": args.project,
    "zone": args.zone,
    "hours": f"{args.hours:g}",
    "expires": str(expires),
    "hosts": str(num_hosts),
    "workdir": workdir,
    "code": code_place(workdir, commit),
    "commit": commit,
    "logs": f"{workdir}/launch/logs/{name}",
    "command": shlex.join(words),
  }
  return {f"moe-parity-{key}": value for key, value in values.items()}


def code_place(workdir: str, commit: str) -> str:
  """Where the commit's files lie for the hosts."""
  return f"{workdir}/launch/code/{commit}.tar.gz"


def ship(commit: str, place: str) -> list[Command]:
  """The commands that bring a commit to the bucket: what is committed, nothing of the laptop."""
  file = os.path.join(tempfile.gettempdir(), f"moe-parity-{commit}.tar.gz")
  return [
    command("git", "-C", ROOT, "archive", "--format=tar.gz", f"--output={file}", commit),
    command("gcloud", "storage", "cp", file, place),
  ]


def cost(requests: Sequence[Request], price: int | float | None) -> str:
  """Chip-hours and, at the price given, dollars: at most, if every slice runs to its expiry."""
  first = requests[0]
  chips = first.slice_type.num_chips * len(requests)
  text = (
    f"{len(requests)} x {first.slice_type.name} = {chips} chips for at most {first.hours:g} h:"
    f" {chips * first.hours:,.0f} chip-hours"
  )
  if price is None:
    return f"{text}; --price=USD of a chip-hour says what they cost"
  return f"{text}, {chips * first.hours * price:,.2f} USD at {price:g} USD a chip-hour"
