"""Injects faults and writes what became of them.

  python -m tests.campaign                        all kinds, more than 1,000 faults, an hour or two
  python -m tests.campaign --damage=50 --resumed=10 --others=0      a minute

Every fault is drawn from --seed. A run must end as the one that was never disturbed, to the last
field, or name what is damaged in one line and go on once that is mended. Exit code 1 where a fault
went unnoticed, ended in a traceback or lost a run; each is printed.
"""

import argparse
import os
import pathlib
import random
import sys
import tempfile
import time


def main(argv=None) -> int:
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    "python -m tests.campaign", description=__doc__, formatter_class=raw
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--damage", type=int, default=700, help="files of a finished study")
  parser.add_argument("--resumed", type=int, default=200, help="files of an unfinished run")
  parser.add_argument("--store", type=int, default=40, help="files of a token store")
  parser.add_argument("--recover", type=float, default=0.2, help="share of mended finished runs")
  parser.add_argument("--out", type=pathlib.Path, default=None, help="a JSON file of the table")
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
    scratch = pathlib.Path(scratch)
    os.environ["MOE_PARITY_CACHE"] = str(scratch / "cache")
    injections = run(args, scratch)
  from tests.campaign import outcomes

  sums = outcomes.write(args.out or pathlib.Path(os.devnull), args.seed, injections)
  print(" ".join(f"{name} {count}" for name, count in sums.items() if name != "kind"))
  return 1 if any(sums[name] for name in outcomes.FAILURES) else 0


def run(args, scratch: pathlib.Path) -> list:
  from tests.campaign import outcomes, runs
  from tests.campaign.damage import FileDamage

  found: list = []
  start = time.monotonic()

  def note(injection) -> None:
    found.append(injection)
    if injection.outcome in outcomes.FAILURES:
      print(f"{len(found)} {injection}", flush=True)
    elif len(found) % 50 == 0:
      print(f"{len(found)} faults in {time.monotonic() - start:.0f} s", flush=True)

  with runs.quick_programs():
    study = runs.make_study(scratch / "study")
    files = FileDamage(study, scratch / "copies")
    for i in range(args.damage):
      rng = random.Random(f"{args.seed} damage {i}")
      note(files.finished(rng, rng.random() < args.recover))
    for i in range(args.resumed):
      note(files.resumed(random.Random(f"{args.seed} resumed {i}")))
    for i in range(args.store):
      note(files.store(scratch / "cache", random.Random(f"{args.seed} store {i}")))
  return found


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
  sys.exit(main())
