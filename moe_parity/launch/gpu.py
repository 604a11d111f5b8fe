"""`launch/gpu.sh`: JAX for the CUDA of this driver, and one worker a GPU.

No XLA flag or optimization level is set here: none has been measured to help. The fraction of a
GPU's memory that JAX takes is set in `startup.py`.
"""

import argparse
import itertools
import os
import pathlib
import re
import socket
from collections.abc import Mapping, Sequence

from moe_parity.errors import UserError
from moe_parity.launch.commands import (
  ROOT,
  Command,
  Shell,
  command,
  has_option,
  moe_parity_command,
  need,
  option_of,
)
from moe_parity.launch.supervise import Supervisor, Worker

HELP = "one host with NVIDIA GPUs"
EXAMPLE = (
  "bash launch/gpu.sh --workers=all study --config=configs/single_gpu.py --workdir=runs/gpu"
  " --config.data.source=text/"
)
QUERY = ("nvidia-smi", "--query-gpu=index,driver_version", "--format=csv,noheader")
# The oldest driver that runs a CUDA (docs.nvidia.com, CUDA toolkit release notes), newest first.
EXTRAS = ((580, "gpu"), (525, "gpu-cuda12"))


def extra_for_driver(version: str) -> str:
  """The extra of moe_parity that brings JAX for a driver: gpu (CUDA 13) or gpu-cuda12.

  Raises:
    UserError: the driver is older than any CUDA that JAX has.
  """
  major = int(version.split(".")[0])
  for oldest, extra in EXTRAS:
    if major >= oldest:
      return extra
  raise UserError(
    f"NVIDIA driver {version}: JAX needs {EXTRAS[-1][0]} (CUDA 12) or {EXTRAS[0][0]} (CUDA 13) or"
    " newer; update the driver"
  )


def read_query(text: str) -> tuple[str, list[str]]:
  """Driver version and GPU indices of what `QUERY` prints: `0, 580.65.06` a line."""
  rows = [line.split(", ") for line in text.strip().splitlines()]
  if not rows or not all(len(row) == 2 and re.match(r"\d+\.", row[1]) for row in rows):
    raise UserError(f"nvidia-smi names no GPU ({text.strip()[:80]!r}); use launch/local.sh")
  return rows[0][1], [row[0] for row in rows]


def chosen(gpus: Sequence[str], visible: str | None, workers: str) -> list[str]:
  """The GPUs that get a worker: CUDA_VISIBLE_DEVICES if it is set, and no more than asked for.

  Raises:
    UserError: `workers` is neither a number nor `all`, or more than there are GPUs; all are hidden,
      or one is named twice or is not there.
  """
  if visible is not None:
    names = [name.strip() for name in visible.split(",")]
    there = gpus
    gpus = list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it
    # CUDA would hide such a GPU and those behind it, and their workers would train on the CPU.
    unknown = [name for name in gpus if name.isdigit() and name not in there]
    if unknown or len(set(gpus)) < len(gpus):
      what = f"GPU {unknown[0]}, which is not here" if unknown else "a GPU twice"
      raise UserError(f"CUDA_VISIBLE_DEVICES={visible!r} names {what}; give {','.join(there)}")
    if not gpus:
      raise UserError(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; unset it, or name some")
  if workers == "all" and gpus:
    return list(gpus)
  if not workers.isdigit() or not 1 <= int(workers) <= len(gpus):
    raise UserError(
      f"--workers={workers}: this host offers {len(gpus)} GPUs ({', '.join(gpus) or 'none'});"
      f" use a number from 1 to {len(gpus)}, or all"
    )
  return list(gpus[: int(workers)])


def worker_commands(words: Sequence[str], gpus: Sequence[str], extra: str, host: str) -> list:
  """One worker a GPU, each beginning with its own share of the study's runs."""
  return [
    command(
      "bash",
      ROOT / "launch/local.sh",
      *words,
      f"--shard={i}/{len(gpus)}",
      f"--worker={host}-gpu{gpu}",
      env={"EXTRA": extra, "CUDA_VISIBLE_DEVICES": gpu},
    )
    for i, gpu in enumerate(gpus, 1)
  ]


def logs_of(words: Sequence[str], given: str) -> pathlib.Path:
  """Where logs go: the folder given, else `logs/` of the study, else (gs://) `runs/logs` here."""
  if given:
    return pathlib.Path(given)
  workdir = option_of(words, "workdir")
  return pathlib.Path("runs/logs") if "://" in workdir else pathlib.Path(workdir) / "logs"


def arguments(parser: argparse.ArgumentParser) -> None:
  """The options of gpu.sh, which stand before the command."""
  parser.add_argument(
    "--workers", metavar="all|N", help="train N runs of a study at once, each on a GPU of its own"
  )
  parser.add_argument("--setup", action="store_true", help="only make the environment")
  parser.add_argument("--logs", default="", metavar="FOLDER", help="of the workers (WORKDIR/logs)")
  parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="COMMAND ...")


def run(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> int:
  """Runs the command on the GPUs of this host; returns its exit code."""
  words = [] if args.setup else moe_parity_command(args.rest)
  shell = Shell(dry_run=args.dry_run)
  need(QUERY[0])
  answer = shell.ask(Command(QUERY))
  if answer.code:
    raise UserError(f"nvidia-smi failed ({answer.why}); mend the driver, or use launch/local.sh")
  driver, gpus = read_query(answer.out)
  extra = extra_for_driver(driver)
  setup = command("bash", ROOT / "launch/local.sh", "--setup", env={"EXTRA": extra})
  if args.setup:
    return _one(shell, setup)
  if args.workers is None:
    return _one(shell, command("bash", ROOT / "launch/local.sh", *words, env={"EXTRA": extra}))
  if words[0] != "study" or not option_of(words, "workdir"):
    raise UserError(f"--workers={args.workers}: only 'study --workdir=...' is trained by several")
  for option in ("shard", "worker"):
    if has_option(words, option):
      raise UserError(f"--{option}: --workers gives every worker its own; leave it out")
  gpus = chosen(gpus, env.get("CUDA_VISIBLE_DEVICES"), args.workers)
  lines = worker_commands(words, gpus, extra, socket.gethostname())
  # The environment once and first, so that workers do not begin by waiting for each other.
  shell.run(setup, stream=True)
  if args.dry_run:
    for line in lines:
      print(line.shown())
    return 0
  logs = logs_of(words, args.logs)
  workers = [
    Worker(f"gpu{gpu}", line.argv, line.env, logs / f"gpu{gpu}.log")
    for gpu, line in zip(gpus, lines, strict=True)
  ]
  print(f"{len(workers)} workers; their logs: {logs}/gpu*.log", flush=True)
  return Supervisor(workers).run()


def _one(shell: Shell, line: Command) -> int:
  if shell.dry_run:
    print(line.shown())
    return 0
  os.execvpe(line.argv[0], line.argv, {**os.environ, **line.env})
