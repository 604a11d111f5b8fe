"""What `tpu.sh up` looks at before it asks for anything: every obstacle, each with a cure."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe_parity.launch.accelerators import SliceType
from moe_parity.launch.commands import ROOT, Command, Result, command
from moe_parity.launch.tpu_requests import region_of

# A role that lets a person ask for slices; a project's owner and editor can too.
ROLES = {"tpu": "roles/tpu.admin", "gce": "roles/compute.instanceAdmin.v1"}
APIS = {
  "tpu": ("tpu.googleapis.com", "storage.googleapis.com"),
  "gce": ("compute.googleapis.com", "storage.googleapis.com"),
}
BROAD_ROLES = ("roles/owner", "roles/editor")
# The regions of Cloud Storage's multi-regions (cloud.google.com/storage/docs/locations).
MULTI_REGIONS = {"us": "us-", "eu": "europe-", "asia": "asia-"}


class Finding(NamedTuple):
  """One thing looked at. `mend` is what to do about it, "" where all is well; a warning stops no
  one."""

  what: str
  mend: str = ""
  warning: bool = False


class Look(NamedTuple):
  """A question to gcloud or git, and how its answer is judged."""

  line: Command
  judge: Callable[[Result], Finding]


def looks(*, api: str, project: str, zone: str, bucket: str, ignore_changes: bool) -> list[Look]:
  """All questions of `up`, in the order of a newcomer's mistakes."""
  enable = f"gcloud services enable {' '.join(APIS[api])} --project={project}"
  return [
    Look(
      command("gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"),
      account,
    ),
    Look(
      command("gcloud", "services", "list", "--enabled", f"--project={project}",
              "--format=value(config.name)"),
      lambda result: services(result, APIS[api], enable),
    ),
    Look(
      command("gcloud", "projects", "get-iam-policy", project, "--flatten=bindings[].members",
              "--format=value(bindings.role,bindings.members)"),
      lambda result: roles(result, ROLES[api], project),
    ),
    Look(
      command("gcloud", "storage", "buckets", "describe", f"gs://{bucket}",
              "--format=value(location)"),
      lambda result: location(result, bucket, region_of(zone)),
    ),
    Look(
      command("git", "-C", ROOT, "status", "--porcelain"),
      lambda result: changes(result, ignore_changes),
    ),
  ]  # fmt: skip


def account(result: Result) -> Finding:
  """Whether somebody is logged in."""
  if who := result.out.strip():
    return Finding(f"account {who.splitlines()[0]}")
  return Finding("no account is logged in", "gcloud auth login")


def services(result: Result, wanted: Sequence[str], cure: str) -> Finding:
  """Whether the APIs are enabled."""
  if result.code:
    return Finding(f"the project's APIs cannot be listed: {result.why}", "check --project")
  missing = [name for name in wanted if name not in result.out.split()]
  if missing:
    return Finding(f"not enabled: {', '.join(missing)}", cure)
  return Finding(f"APIs: {', '.join(wanted)}")


def roles(result: Result, wanted: str, project: str) -> Finding:
  """Whether somebody has the role; only a warning, as roles may come by a group or a folder."""
  if result.code:
    what = f"the project's roles cannot be read: {result.why}"
    return Finding(what, f"if a request is refused, ask for {wanted}", warning=True)
  granted = {line.split()[0] for line in result.out.splitlines() if line.split()}
  if granted & {wanted, *BROAD_ROLES}:
    return Finding(f"roles: {wanted}, or a broader one, is granted in {project}")
  cure = f"gcloud projects add-iam-policy-binding {project} --member=user:YOU --role={wanted}"
  return Finding(f"{wanted} is granted to nobody in {project} itself", cure, warning=True)


def location(result: Result, bucket: str, region: str) -> Finding:
  """Whether the bucket is there and near: traffic between regions is slow and paid for."""
  if result.code:
    cure = f"gcloud storage buckets create gs://{bucket} --location={region}"
    return Finding(f"gs://{bucket} cannot be read: {result.why}", cure)
  place = result.out.strip().lower()
  if place == region or region.startswith(MULTI_REGIONS.get(place, "\n")):
    return Finding(f"gs://{bucket} is in {place}, as the chips are")
  cure = f"use a bucket in {region}, or a zone of {place}; --any-region takes it as it is"
  return Finding(f"gs://{bucket} is in {place}, the chips would be in {region}", cure)


def changes(result: Result, ignore: bool) -> Finding:
  """Whether the commit is what the person has before them: slices get the commit, nothing else."""
  if result.code:
    return Finding(
      f"this is no git checkout: {result.why}", "launch from a clone of the repository"
    )
  files = [line for line in result.out.splitlines() if line.strip()]
  if not files:
    return Finding("nothing is changed since the commit")
  what = f"{len(files)} files differ from the commit, and slices get the commit: {files[0].strip()}"
  return Finding(what, "commit them, or --ignore-changes to leave them out", warning=ignore)


def fits(results: pathlib.Path, config: str, slice_type: SliceType) -> Finding:
  """Whether a result of `moe-parity compile` says that the config fits such a slice."""
  study = pathlib.Path(config.split(":")[0]).stem
  line = f"moe-parity compile --config={config} --topology={slice_type.name}"
  for file in sorted(results.glob("compile_*.json")):
    try:
      found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
      continue
    if isinstance(found, dict) and (found.get("config"), found.get("topology")) == (
      study,
      slice_type.name,
    ):
      what = f"{file.name}: arm {found.get('arm')} on {slice_type.name}"
      if found.get("fits"):
        return Finding(f"{what} fits")
      return Finding(f"{what} does not fit the memory", "choose a larger slice or another mesh")
  return Finding(f"no compile result of {study} on {slice_type.name}", line, warning=True)
