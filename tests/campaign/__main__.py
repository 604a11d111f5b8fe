"""Injects faults and writes what became of them.

  python -m tests.campaign                        all kinds, more than 1,000 faults, an hour or two
  python -m tests.campaign --damage=50 --resumed=10 --others=0      a minute

Every fault is drawn from --seed. A run must end as the one that was never disturbed, to the last
field, or name what is damaged in one line and continue once that is repaired. Exit code 1 where a
fault went unnoticed, ended in a traceback or lost a run; each is printed.
"""

import argparse
import os
import pathlib
import random
import sys
import tempfile
import time

from tests.campaign import outcomes

COUNTS = {  # option -> faults by default, what they are
  "damage": (700, "files of a finished study, damaged"),
  "resumed": (180, "files of an unfinished run, damaged before it is trained on"),
  "store": (40, "files of a token store, damaged before a run is trained on"),
  "disk": (60, "disks that become full"),
  "names": (60, "strange names of folders and workers"),
  "kills": (12, "runs of one worker, killed or asked to stop twice each"),
  "workers": (6, "studies by two and by four workers, killed and put to sleep"),
  "pairs": (4, "runs of two processes, one of them killed"),
}


def main(argv=None) -> int:
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    "python -m tests.campaign", description=__doc__, formatter_class=raw
  )
  parser.add_argument("--seed", type=int, default=0)
  for name, (count, what) in COUNTS.items():
    parser.add_argument(f"--{name}", type=int, default=count, help=f"{what} ({count})")
  parser.add_argument("--others", type=int, default=None, help="how many of each kind not given")
  parser.add_argument("--recover", type=float, default=0.2, help="share of repaired finished runs")
  parser.add_argument("--out", type=pathlib.Path, default=None, help="a JSON file of the table")
  parser.add_argument(
    "--merge", type=pathlib.Path, nargs="+", help="instead: adds up these tables into --out"
  )
  args = parser.parse_args(argv)
  if args.merge:
    return _exit_code(outcomes.merge(args.merge, args.out))
  if args.others is not None:
    for name, (count, _) in COUNTS.items():
      if getattr(args, name) == count:
        setattr(args, name, args.others)
  found: list[outcomes.Injection] = []
  with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
    scratch = pathlib.Path(scratch)
    os.environ["MOE_PARITY_CACHE"] = str(scratch / "cache")
    for injections in faults(args, scratch):
      found += injections
      for one in injections:
        if one.outcome in outcomes.FAILURES:
          print(f"{len(found)} {one}", flush=True)
      if len(found) % 20 < len(injections):
        print(f"{len(found)} faults, {time.monotonic() - START:.0f} s", flush=True)
        outcomes.write(args.out or pathlib.Path(os.devnull), args.seed, found)
  sums = outcomes.write(args.out or pathlib.Path(os.devnull), args.seed, found)
  return _exit_code(sums)


def _exit_code(sums: dict) -> int:
  print(", ".join(f"{name} {sums[name]}" for name in ("injected", *outcomes.OUTCOMES)))
  return 1 if any(sums[name] for name in outcomes.FAILURES) else 0


def faults(args, scratch: pathlib.Path):
  """Yields the outcomes of each kind of fault, in lists."""
  from tests.campaign import full_disk, runs
  from tests.campaign.damage import FileDamage
  from tests.campaign.full_disk import FullDisk
  from tests.campaign.kills import Kills
  from tests.campaign.names import HostileNames

  may_mount = args.disk and full_disk.own_mounts()
  draw = lambda kind, i: random.Random(f"{args.seed} {kind} {i}")  # noqa: E731
  with runs.quick_programs():
    study = runs.make_study(scratch / "study")
    files = FileDamage(study, scratch / "copies")
    if may_mount:
      with full_disk.small_disk(scratch / "disk") as is_mounted:
        full = FullDisk(files.unfinished, files.expected, scratch / "disk")
        for i in range(args.disk if is_mounted else 0):
          yield [full.inject(draw("disk", i))]
    names = HostileNames(study, files.unfinished, files, scratch)
    for i in range(args.names):
      yield [names.inject(draw("names", i))]
    for i in range(args.store):
      yield [files.store(scratch / "cache", draw("store", i))]
    for i in range(args.resumed):
      yield [files.resumed(draw("resumed", i))]
    for i in range(args.damage):
      rng = draw("damage", i)
      yield [files.finished(rng, rng.random() < args.recover)]
  kills = Kills(files.expected, scratch / "cache", scratch)
  for i in range(args.kills):
    yield kills.one_worker(draw("kills", i))
  for i in range(args.workers):
    yield kills.workers(draw("workers", i), 2 if i % 2 else 4)
  for i in range(args.pairs):
    yield kills.two_processes(draw("pairs", i))


START = time.monotonic()

if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
  sys.exit(main())
