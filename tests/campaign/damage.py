"""Files cut, emptied, flipped, deleted or grown, in a finished study, an unfinished run and its
token store."""

import functools
import json
import pathlib
import random
import re
import shutil

from tests.campaign import runs
from tests.campaign.outcomes import LOST, NAMED, Injection, command, judge, worst

KINDS = {  # how the path of a file in a study folder matches -> what it is
  r"runs/[^/]+/config.json": "a run's config.json", r"runs/[^/]+/plan.json": "a run's plan.json",
  r"runs/[^/]+/data.json": "data.json", r"runs/[^/]+/result.json": "result.json",
  r"runs/[^/]+/certificate.json": "a run's certificate.json",
  r"runs/[^/]+/metrics.jsonl": "metrics.jsonl", r"runs/[^/]+/routing.npz": "routing.npz",
  r"runs/[^/]+/ledger.npz": "ledger.npz", r"runs/[^/]+/specialization.npz": "specialization.npz",
  r"runs/.+/hashes.json": "a checkpoint's hashes",
  r"runs/.+/logs/[^/]+": "a checkpoint's copy of the logs",
  r"runs/.+/d/[^/]+": "a checkpoint's arrays",
  r"runs/[^/]+/checkpoints/.+": "a checkpoint's other files",
  r"runs/[^/]+/tensorboard/.+": "TensorBoard events", r"leases/.+": "leases",
  r"study.json": "study.json", r"plan.json": "a study's plan.json",
  r"certificate.json": "a study's certificate.json", r"analysis.json": "analysis.json",
}  # fmt: skip


def kind_of(name: str) -> str:
  """What a file of a study is, by its path."""
  return next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern, name)), "")


def by_kind(folder: pathlib.Path) -> dict[str, list[str]]:
  """Files of a study, by what they are."""
  found: dict[str, list[str]] = {}
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    name = path.relative_to(folder).as_posix()
    if kind := kind_of(name):
      found.setdefault(kind, []).append(name)
  return found


def cut(content: bytes, rng: random.Random) -> bytes:
  return content[: rng.randrange(1, max(len(content), 2))]


def emptied(content: bytes, rng: random.Random) -> bytes:
  return b""


def flipped(content: bytes, rng: random.Random) -> bytes:
  changed = bytearray(content or b"\0")
  changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def deleted(content: bytes, rng: random.Random) -> None:
  return None


def grown(content: bytes, rng: random.Random) -> bytes:
  return content + rng.randbytes(rng.randrange(1, 40))


DAMAGES = (cut, emptied, flipped, deleted, grown)


def damage(path: pathlib.Path, how, rng: random.Random) -> None:
  content = how(path.read_bytes(), rng)
  path.unlink() if content is None else runs.put(path, content)


class FileDamage:
  """Injects into copies of one finished study.

  Args:
    study: finished, with its analysis.
    scratch: an empty folder for the copies.
  """

  def __init__(self, study: pathlib.Path, scratch: pathlib.Path):
    self.study, self.scratch, self.number = study, scratch, 0
    self.kinds = by_kind(study)
    self.unfinished = runs.copy(study, scratch / "unfinished")
    for arm in runs.ARMS:
      runs.unfinish(self.unfinished / f"runs/{arm}-s0")
    self.unfinished_kinds = by_kind(self.unfinished)
    self.expected = {arm: runs.outcome_of(study / f"runs/{arm}-s0") for arm in runs.ARMS}
    self.finished_as = {
      arm: runs.outcome_of(study / f"runs/{arm}-s0", derived=False) for arm in runs.ARMS
    }

  @functools.cached_property
  def report(self) -> str:
    """What `report --json` prints of the study."""
    return self._report(self.study).text

  @functools.cached_property
  def scores(self) -> dict[str, str]:
    """What `evaluate` prints of every arm."""
    return {arm: self._evaluate(self.study, arm).text for arm in runs.ARMS}

  def _report(self, folder):
    return command("report", folder, "--json")

  def _evaluate(self, folder, arm):
    return command("evaluate", folder / f"runs/{arm}-s0", "--max-tokens=300", "--json")

  def _copy(self, study: pathlib.Path) -> pathlib.Path:
    self.number += 1
    return runs.copy(study, self.scratch / f"copy_{self.number}" / study.name)

  def finished(self, rng: random.Random, recover: bool) -> Injection:
    """Damages one file of the finished study, then trains, reports and evaluates again.

    Args:
      recover: where the fault is named, do what the message says and expect the reference.
    """
    kind = rng.choice(sorted(self.kinds))
    name, how = rng.choice(self.kinds[kind]), rng.choice(DAMAGES)
    folder = self._copy(self.study)
    damage(folder / name, how, rng)
    arm = next((arm for arm in runs.ARMS if f"/{arm}-s0/" in name), "moe_40")
    run, names = folder / f"runs/{arm}-s0", _names(name)
    found = []
    if name.startswith("runs/") or name.startswith("leases/"):
      done = command(*runs.train_command(run, arm))
      found.append(judge(done, lambda: runs.same_run(run, self.finished_as[arm], False), names))
      if "checkpoints" in name or kind.startswith("a run's"):
        done = self._evaluate(folder, arm)
        found.append(judge(done, lambda: done.text == self.scores[arm], names))
    reported = self._report(folder)
    found.append(judge(reported, lambda: self._same_report(folder, reported.text), names))
    outcome, note = worst(*found)
    if outcome == NAMED and recover:
      outcome, note = self._recovered(folder, name, arm, note)
    shutil.rmtree(folder.parent)
    return Injection("a finished study", kind, f"{name} {how.__name__}", outcome, note)

  def _same_report(self, folder: pathlib.Path, text: str) -> bool:
    given, expected = (json.loads(t[t.index("{") :]) for t in (text, self.report))
    return runs.untimed(given) == runs.untimed(expected)

  def _recovered(self, folder, name: str, arm: str, note: str) -> tuple[str, str]:
    """After the file, or the result that rests on it, was removed: the reference, or a lost run."""
    run = folder / f"runs/{arm}-s0"
    if name.startswith("runs/"):
      if "/checkpoints/" in name:
        step = pathlib.PurePosixPath(name).parts[3]
        shutil.rmtree(run / "checkpoints" / step)
      else:
        (folder / name).unlink(missing_ok=True)
      for path in ("result.json", "certificate.json"):
        (run / path).unlink(missing_ok=True)
      done = command(*runs.train_command(run, arm))
      is_whole = done.code == 0 and runs.same_run(run, self.expected[arm])
    else:
      (folder / name).unlink(missing_ok=True)
      done = command(*runs.study_command(folder))
      is_whole = done.code == 0 and not done.trace
    return (NAMED, note) if is_whole else (LOST, f"{note} | {done.words[-300:]} {done.trace}")

  def resumed(self, rng: random.Random) -> Injection:
    """Damages one file of an unfinished run, then trains on to its end."""
    kinds = {
      kind: [name for name in names if name.startswith("runs/")]
      for kind, names in self.unfinished_kinds.items()
    }
    kinds = {kind: names for kind, names in kinds.items() if names}
    kind = rng.choice(sorted(kinds))
    name, how = rng.choice(kinds[kind]), rng.choice(DAMAGES)
    arm = next(arm for arm in runs.ARMS if f"/{arm}-s0/" in name)
    folder = self._copy(self.unfinished)
    run = folder / f"runs/{arm}-s0"
    damage(folder / name, how, rng)
    outcome, note = self.resume(run, arm, _names(name))
    if outcome == NAMED:
      (folder / name).unlink(missing_ok=True)
      again, why = self.resume(run, arm, _names(name))
      outcome, note = (NAMED, note) if runs.same_run(run, self.expected[arm]) else (
        worst((LOST, f"{note} | {why}"), (again, why)))  # fmt: skip
    shutil.rmtree(folder.parent)
    return Injection("an unfinished run", kind, f"{name} {how.__name__}", outcome, note)

  def resume(self, run: pathlib.Path, arm: str, names) -> tuple[str, str]:
    done = command(*runs.train_command(run, arm))
    return judge(done, lambda: runs.same_run(run, self.expected[arm]), names)

  def store(self, cache: pathlib.Path, rng: random.Random) -> Injection:
    """Damages a file of the token store in the cache, then trains an unfinished run on."""
    folder = self._copy(self.unfinished)
    run = folder / "runs/dense-s0"
    files = [p for p in sorted(cache.rglob("*")) if p.is_file() and "compiled" not in p.parts]
    path, how = rng.choice(files), rng.choice(DAMAGES)
    before = path.read_bytes(), path.stat()
    name = path.relative_to(cache).as_posix()
    damage(path, how, rng)
    try:
      outcome, note = self.resume(run, "dense", _names(name))
    finally:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(before[0])
    if outcome == NAMED:
      again, why = self.resume(run, "dense", _names(name))
      if not runs.same_run(run, self.expected["dense"]):
        outcome, note = worst((LOST, f"{note} | {why}"), (again, why))
    shutil.rmtree(folder.parent)
    return Injection("a token store", path.suffix or path.name, f"{name} {how.__name__}",
                     outcome, note)  # fmt: skip


def _names(name: str) -> list[str]:
  """Words by which a message may name a file."""
  path = pathlib.PurePosixPath(name)
  names = [path.name]
  if "checkpoints" in path.parts:
    names = [f"checkpoint of step {path.parts[path.parts.index('checkpoints') + 1]}",
             "checkpoint"]  # fmt: skip
  if path.parts[0] not in ("runs", "leases"):
    names.append(path.parts[0])  # a store
  if path.parts[0] == "leases":
    names.append("lease")
  return names
