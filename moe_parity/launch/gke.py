"""`launch/gke.sh`: JobSets on TPU slices, or an indexed Job on GPUs."""

import argparse
import json
from collections.abc import Sequence

from moe_parity.errors import UserError
from moe_parity.launch import manifests
from moe_parity.launch.accelerators import slice_type
from moe_parity.launch.commands import (
  ROOT,
  Command,
  Shell,
  action_parsers,
  check_owner,
  cloud_name,
  command,
  has_option,
  moe_parity_command,
  option_of,
  owner,
  say,
)
from moe_parity.launch.manifests import OWNER_LABEL, STUDY_LABEL, Work

HELP = "a study on Google Kubernetes Engine"
EXAMPLE = (
  "bash launch/gke.sh submit --type=v6e-16 --workers=4 --queue=research --image=IMAGE"
  " -- study --config=configs/paper_2b.py --workdir=gs://B/a"
)

LONGEST_NAME = 36  # JobSet adds suffixes
PODS = "pods"
JOBSETS, QUEUES = "jobsets.jobset.x-k8s.io", "localqueues.kueue.x-k8s.io"
INSTALL = {
  JOBSETS: "an administrator installs JobSet (jobset.sigs.k8s.io); GPUs (--accelerator) need none",
  QUEUES: "an administrator installs Kueue (kueue.sigs.k8s.io); submit without --queue needs none",
}


def arguments(parser: argparse.ArgumentParser) -> None:
  """The actions and their options."""
  for sub in action_parsers(parser, ACTIONS):
    sub.add_argument("--namespace", default="default")


def run(args: argparse.Namespace) -> int:
  """Runs one action; its exit code."""
  return ACTIONS[args.action][2](args, Shell(dry_run=args.dry_run))


def _submit_options(sub: argparse.ArgumentParser) -> None:
  add = sub.add_argument
  kind = sub.add_mutually_exclusive_group(required=True)
  kind.add_argument("--type", default="", help="of a TPU slice, such as v6e-16: a JobSet a worker")
  kind.add_argument("--accelerator", default="", metavar="GPU", help="such as nvidia-h100-80gb")
  add("--gpus", type=int, default=1, help="of one worker, with --accelerator (1)")
  add("--workers", type=int, default=1, help="on one study (1)")
  add("--image", required=True, help="built from launch/Dockerfile, see 'image'")
  add("--queue", default="", help="Kueue's local queue; without it nothing is queued")
  add("--name", default="", help="of the study (the last part of --workdir)")
  add("--spot", action="store_true", help="nodes that may be taken away at any time")
  add("--hours", type=float, default=0, help="of one life of a worker (no limit)")
  add("--max-restarts", type=int, default=20, help="after crashes (20)")
  add("--service-account", default="", help="of Kubernetes, that may write the bucket")
  add("rest", nargs=argparse.REMAINDER, metavar="-- study ...")


def _name_option(sub: argparse.ArgumentParser) -> None:
  sub.add_argument("--name", required=True, help="of the study")


def _delete_options(sub: argparse.ArgumentParser) -> None:
  _name_option(sub)
  sub.add_argument("--everyone", action="store_true", help="also what colleagues submitted")


def _image_options(sub: argparse.ArgumentParser) -> None:
  sub.add_argument("--image", required=True, help="its full name, registry and tag included")
  sub.add_argument("--extra", default="tpu", choices=("tpu", "gpu", "gpu-cuda12"))


def _queue_options(sub: argparse.ArgumentParser) -> None:
  sub.add_argument("--queue", required=True)
  sub.add_argument("--type", required=True)
  sub.add_argument("--slices", type=int, required=True)


def objects(args: argparse.Namespace, words: list[str]) -> list[dict]:
  """The objects of `submit`.

  Raises:
    UserError: something in the options or the command cannot work on a cluster.
  """
  workdir = option_of(words, "workdir").rstrip("/")
  if "://" not in workdir:
    raise UserError(f"--workdir={workdir}: a pod's disk goes with the pod; use gs://BUCKET/NAME")
  if args.workers < 1 or args.gpus < 1:
    raise UserError("--workers and --gpus must be at least 1")
  for option in ("shard", "worker", "coordinator"):
    if has_option(words, option):
      raise UserError(f"--{option}: every worker gets its own; leave it out")
  work = Work(
    study=cloud_name(args.name or workdir.split("/")[-1], most=LONGEST_NAME),
    command=words,
    owner=owner(),
    **{
      field: getattr(args, field)
      for field in (
        "image",
        "queue",
        "namespace",
        "spot",
        "hours",
        "max_restarts",
        "service_account",
      )
    },
  )
  if args.type:
    return manifests.jobsets(work, slice_type(args.type), args.workers)
  return [manifests.gpu_job(work, args.accelerator, args.gpus, args.workers)]


def known_types(shell: Shell) -> set[str]:
  """The types of objects that the cluster has, as `kubectl api-resources` names them.

  Raises:
    UserError: no cluster answers.
  """
  answer = shell.ask(command("kubectl", "api-resources", "--output=name"))
  # Where one of a cluster's services is down, kubectl fails after it has listed the others.
  if not answer.out.strip():
    raise UserError(
      f"no cluster answers kubectl ({answer.why}); 'gcloud container clusters get-credentials"
      " CLUSTER' chooses one"
    )
  return set(answer.out.split())


def check_types(shell: Shell, needed: Sequence[str]) -> None:
  """
  Raises:
    UserError: the cluster lacks a type of object, or no cluster answers.
  """
  if shell.dry_run or not needed:
    return
  known = known_types(shell)
  for name in needed:
    if name not in known:
      raise UserError(f"this cluster has no {name}; {INSTALL[name]}")


def create(manifest: dict) -> Command:
  """The command that makes an object; a misspelt field is refused by the server."""
  text = json.dumps(manifest, indent=1)
  return command("kubectl", "create", "--validate=strict", "--filename=-", stdin=text)


def submit(args: argparse.Namespace, shell: Shell) -> int:
  """Makes the objects; if one is refused, or on Ctrl-C, those made before it are deleted."""
  words = moe_parity_command(args.rest, only=("study",))
  wanted, made = objects(args, words), []
  check_types(shell, [*([JOBSETS] if args.type else []), *([QUEUES] if args.queue else [])])
  try:
    for manifest in wanted:
      shell.run(create(manifest))
      made.append(f"{manifest['kind'].lower()}/{manifest['metadata']['name']}")
  except BaseException:
    if made:
      say(f"not all could be made; deleting {', '.join(made)}")
      shell.run(command("kubectl", "delete", f"--namespace={args.namespace}", *made))
    raise
  if not args.dry_run:
    study = wanted[0]["metadata"]["labels"][STUDY_LABEL]
    say(f"made {', '.join(made)}; watch: bash launch/gke.sh status --name={study}")
  return 0


def _selected(args: argparse.Namespace) -> tuple[str, ...]:
  study = cloud_name(args.name, most=LONGEST_NAME)  # as `submit` made it of the folder's name
  return f"--namespace={args.namespace}", f"--selector={STUDY_LABEL}={study}"


def _kinds(shell: Shell) -> str:
  """What a study's objects may be on this cluster. One without JobSet can have Jobs of GPUs."""
  if shell.dry_run or JOBSETS in known_types(shell):
    return "jobsets,jobs"
  say(f"this cluster has no {JOBSETS}, so there are no slices; only Jobs of GPUs are looked at")
  return "jobs"


def status(args: argparse.Namespace, shell: Shell) -> int:
  """The study's objects and pods, as kubectl shows them."""
  line = command("kubectl", "get", f"{_kinds(shell)},pods", *_selected(args))
  shell.run(line, stream=True)
  return 0


def logs(args: argparse.Namespace, shell: Shell) -> int:
  """The ends of the workers' logs."""
  check_types(shell, [PODS])
  line = command(
    "kubectl", "logs", *_selected(args), "--tail=40", "--prefix", "--max-log-requests=64"
  )
  shell.run(line, stream=True)
  return 0


def delete(args: argparse.Namespace, shell: Shell) -> int:
  """Deletes the study's objects; their pods save a checkpoint first.

  Raises:
    UserError: some are another person's, and --everyone is not given.
  """
  kinds, selected = _kinds(shell), _selected(args)
  if not args.everyone and not shell.dry_run:
    held = json.loads(shell.run(command("kubectl", "get", kinds, *selected, "--output=json")).out)
    labels = [item["metadata"].get("labels", {}) for item in held["items"]]
    check_owner([each.get(OWNER_LABEL, "") for each in labels], args.name, args.action)
  shell.run(command("kubectl", "delete", kinds, *selected), stream=True)
  return 0


def image(args: argparse.Namespace, shell: Shell) -> int:
  """Builds and pushes the image of this checkout."""
  dockerfile = f"--file={ROOT / 'launch/Dockerfile'}"
  build = command("docker", "build", dockerfile, f"--build-arg=EXTRA={args.extra}")
  shell.run(command(*build.argv, f"--tag={args.image}", ROOT), stream=True)
  shell.run(command("docker", "push", args.image), stream=True)
  return 0


def queue(args: argparse.Namespace, shell: Shell) -> int:
  """For an administrator, once: a Kueue queue over some slices."""
  if args.slices < 1:
    raise UserError("--slices must be at least 1")
  check_types(shell, [QUEUES])
  for made in manifests.queue(args.queue, args.namespace, slice_type(args.type), args.slices):
    text = json.dumps(made, indent=1)
    shell.run(command("kubectl", "apply", "--validate=strict", "--filename=-", stdin=text))
  return 0


ACTIONS = {
  "submit": ("makes the objects of a study", _submit_options, submit),
  "status": ("a study's objects and pods", _name_option, status),
  "logs": ("the ends of the workers' logs", _name_option, logs),
  "delete": ("deletes a study's objects", _delete_options, delete),
  "image": ("builds and pushes the image of this checkout", _image_options, image),
  "queue": ("for an administrator, once: a Kueue queue over TPU slices", _queue_options, queue),
}
