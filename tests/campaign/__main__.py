"""Injects faults and writes what became of them.

  python -m tests.campaign --folder=campaign      all kinds, more than 1,000 faults, an hour or two
  python -m tests.campaign --others=0 --damage=50 --resumed=10       a minute

Every fault is drawn from --seed, its kind and its number. A run must end as the one that was never
disturbed, to the last field, or name what is damaged in one line and continue once that is
repaired. Exit code 1 where a fault went unnoticed, ended in a traceback or lost a run; each is
printed.

With --folder the campaign writes a journal there and resumes where it was stopped; --again repeats
the faults that failed, after they were repaired; another --seed adds further ones.
"""

import argparse
import concurrent.futures
import os
import pathlib
import random
import sys
import tempfile
import time
import traceback

from tests.campaign import outcomes
from tests.campaign.journal import Journal

COUNTS = {  # option -> faults by default, what they are
  "damage": (480, "files of a finished study, damaged"),
  "resumed": (110, "files of an unfinished run, damaged before it is trained on"),
  "store": (30, "files of a token store, damaged before a run is trained on"),
  "disk": (60, "disks that become full, at every stage of a run"),
  "names": (24, "strange names of folders and workers"),
  "stores": (100, "hostile names in the manifest of a token store, on a disk and on a bucket"),
  "studies": (100, "hostile names in the plans, results, stages and parts of a study"),
  "buckets": (200, "hostile names on a bucket that holds a study"),
  "kills": (14, "runs of one worker, killed or asked to stop up to six times"),
  "workers": (6, "studies by two and by four workers, killed and put to sleep"),
  "pairs": (4, "runs of two processes, one of them killed"),
}
LANES = 2  # of faults of processes, at a time


def main(argv=None) -> int:
  args = _arguments(argv)
  with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
    folder = args.folder or pathlib.Path(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MOE_PARITY_CACHE"] = str(folder / "cache")
    journal = Journal(folder / "injections.jsonl")
    keys = [key for key in order(args) if args.again or key not in journal]
    if args.again:
      keys = journal.failed()
    if keys:
      run_all(keys, args, folder, journal)
  sums = outcomes.write(args.out or pathlib.Path(os.devnull), journal)
  print(", ".join(f"{name} {sums[name]}" for name in ("injected", *outcomes.OUTCOMES)))
  return 1 if any(sums[name] for name in outcomes.FAILURES) else 0


def _arguments(argv):
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    "python -m tests.campaign", description=__doc__, formatter_class=raw
  )
  parser.add_argument("--seed", type=int, default=0)
  for name, (count, what) in COUNTS.items():
    parser.add_argument(f"--{name}", type=int, help=f"{what} ({count})")
  parser.add_argument("--others", type=int, help="how many of each kind not given")
  parser.add_argument("--recover", type=float, default=0.06, help="share of repaired finished runs")
  parser.add_argument("--out", type=pathlib.Path, help="a JSON file of the table")
  parser.add_argument("--folder", type=pathlib.Path, help="for the journal and all runs; stays")
  parser.add_argument("--again", action="store_true", help="repeats what failed in the journal")
  args = parser.parse_args(argv)
  for name, (count, _) in COUNTS.items():
    if getattr(args, name) is None:
      setattr(args, name, count if args.others is None else args.others)
  return args


def order(args) -> list[tuple[str, int, int]]:
  """The key of every fault; the kinds keep pace, so that a stopped campaign has some of each."""
  found = []
  for name in COUNTS:
    count = getattr(args, name)
    found += [((i + 0.5) / count, name, i) for i in range(count)]
  return [(name, args.seed, i) for _, name, i in sorted(found)]


def run_all(keys, args, folder: pathlib.Path, journal: Journal) -> None:
  """Injects all of `keys`; those of processes from threads of their own."""
  from tests.campaign.injector import OF_PROCESSES, Injector

  begun = time.monotonic()
  with Injector(folder, {key[0] for key in keys}, args.recover) as injector:

    def one(key):
      since = time.monotonic()
      found = injector.inject(key[0], random.Random(f"{key[1]} {key[0]} {key[2]}"), key[2])
      journal.add(key, time.monotonic() - since, found)
      for injection in found:
        if injection.outcome in outcomes.FAILURES:
          print(f"{key} {injection}", file=sys.__stdout__, flush=True)
      if len(journal.lines) % 20 == 0:
        note = f"{len(journal.injections())} faults, {time.monotonic() - begun:.0f} s"
        print(note, file=sys.__stdout__, flush=True)
        outcomes.write(args.out or pathlib.Path(os.devnull), journal)

    def all_of(chosen):
      for key in chosen:
        try:
          one(key)
        except Exception:  # noqa: BLE001 - of the campaign itself: said, and the others go on
          print(key, traceback.format_exc(), file=sys.__stdout__, flush=True)

    with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
      chosen = [key for key in keys if key[0] in OF_PROCESSES]
      lanes = [pool.submit(all_of, chosen[i::LANES]) for i in range(LANES)]
      all_of([key for key in keys if key[0] not in OF_PROCESSES])
      for lane in lanes:
        lane.result()


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
  sys.exit(main())
