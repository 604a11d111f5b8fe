"""`launch/slurm.sh`: a job array of workers on one study."""

import argparse
import pathlib
import re
import shlex

from moe_parity.errors import UserError
from moe_parity.launch.commands import (
  ROOT,
  Command,
  Shell,
  command,
  has_option,
  moe_parity_command,
  option_of,
  say,
)

HELP = "a study on a Slurm cluster"
EXAMPLE = (
  "bash launch/slurm.sh submit --workers=8 --hours=4 --gpus=1 -- study"
  " --config=configs/single_gpu.py --workdir=/shared/runs/a --config.data.source=text/"
)


LONGEST_WARNING = 65535  # seconds that sbatch's --signal takes


def arguments(parser: argparse.ArgumentParser) -> None:
  """`submit` and its options."""
  subs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
  sub = subs.add_parser("submit", help="hands the workers to sbatch", allow_abbrev=False)
  add = sub.add_argument
  add("--dry-run", action="store_true", default=argparse.SUPPRESS)
  add("--workers", type=int, default=1, help="jobs of the array, each one worker (1)")
  add("--hours", type=float, required=True, help="limit of one life of a worker")
  add(
    "--warning",
    type=int,
    default=120,
    metavar="SECONDS",
    help="between the signal to save and the limit (120)",
  )
  add("--max-restarts", type=int, default=100, help="of a worker (100)")
  add("--nodes", type=int, default=1, help="of one worker: one run on several nodes (1)")
  add("--gpus", type=int, default=0, help="of each node (0)")
  add("--cpus", type=int, default=0, help="of each node (the cluster's default)")
  add("--memory", default="", help="of each node, such as 64G (the cluster's default)")
  add("--partition", default="")
  add("--account", default="")
  add("--qos", default="")
  add("--extra", default="", help="JAX for what: gpu, gpu-cuda12 (gpu where there are --gpus)")
  add("--logs", default="", metavar="FOLDER", help="that all nodes see (WORKDIR/logs)")
  add("--sbatch", default="", metavar="'OPTIONS'", help="more options for sbatch")
  add("rest", nargs=argparse.REMAINDER, metavar="-- study ...")  # fmt: skip


def check(args: argparse.Namespace, words: list[str]) -> None:
  """Raises UserError where the options cannot make a job."""
  if args.workers < 1 or args.nodes < 1:
    raise UserError("--workers and --nodes must be at least 1")
  try:
    shlex.split(args.sbatch)
  except ValueError as error:
    raise UserError(f"--sbatch={args.sbatch!r}: {error}; quote it as a shell reads it") from None
  if not 1 <= args.warning <= LONGEST_WARNING:
    raise UserError(f"--warning={args.warning}: Slurm takes 1 to {LONGEST_WARNING} seconds")
  if args.hours * 3600 < 4 * args.warning:
    raise UserError(
      f"--hours={args.hours:g}: a life of {args.hours * 60:g} minutes, of which the last"
      f" {args.warning} s are the warning, trains nothing; use at least"
      f" {4 * args.warning / 3600:.2g}"
    )
  if args.workers > 1 and words[0] != "study":
    raise UserError(
      f"--workers={args.workers}: several workers share a study; {words[0]} is one run"
    )
  for option in ("shard", "coordinator"):
    if has_option(words, option):
      raise UserError(f"--{option}: every worker gets its own; leave it out")


def sbatch(args: argparse.Namespace, words: list[str], logs: pathlib.Path) -> Command:
  """The command that submits. Times are in minutes: Slurm reads 0:10 as ten seconds."""
  workdir = option_of(words, "workdir").rstrip("/")
  name = re.sub(r"[^A-Za-z0-9_-]", "-", workdir.split("/")[-1]) or words[0]
  several = {"array": f"1-{args.workers}"} if args.workers > 1 else {}
  options = {
    "job-name": name,
    **several,
    "time": str(max(round(args.hours * 60), 1)),
    "signal": f"TERM@{args.warning}",
    "open-mode": "append",
    # A % in a folder's name would be a symbol of Slurm's.
    "output": f"{str(logs).replace('%', '%%')}/{'%A_%a' if several else '%j'}.log",
    "nodes": str(args.nodes),
    "ntasks-per-node": "1",
    "gpus-per-node": str(args.gpus or ""),
    "cpus-per-task": str(args.cpus or ""),
    "mem": args.memory,
    "partition": args.partition,
    "account": args.account,
    "qos": args.qos,
  }
  return command(
    *("sbatch", "--parsable", "--requeue"),
    *(f"--{name}={value}" for name, value in options.items() if value),
    *shlex.split(args.sbatch),
    ROOT / "launch/slurm.sbatch",
    *words,
    env={
      **_extra(args),
      "MOE_PARITY_ROOT": str(ROOT),
      "MOE_PARITY_MAX_RESTARTS": str(args.max_restarts),
    },
  )


def _extra(args: argparse.Namespace) -> dict[str, str]:
  extra = args.extra or ("gpu" if args.gpus else "")
  return {"EXTRA": extra} if extra else {}


def run(args: argparse.Namespace) -> int:
  """Makes the environment once, on a disk that all nodes see, and submits."""
  words = moe_parity_command(args.rest, only=("study", "train", "evaluate", "bench"))
  check(args, words)
  workdir = option_of(words, "workdir")
  if not workdir and not args.logs:
    raise UserError("--workdir: the command has none, so say where logs go: --logs=FOLDER")
  logs = pathlib.Path(args.logs or ("runs/logs" if "://" in workdir else f"{workdir}/logs"))
  shell = Shell(dry_run=args.dry_run)
  # Slurm drops a job whose log it cannot open, without a word.
  shell.run(command("mkdir", "-p", logs))
  shell.run(command("bash", ROOT / "launch/local.sh", "--setup", env=_extra(args)), stream=True)
  job = shell.run(sbatch(args, words, logs)).out.strip().split(";")[0]
  if job:
    say(f"job {job}, {args.workers} workers; logs: {logs}")
    say(f"watch: squeue --job={job}    stop: scancel {job}")
  return 0
