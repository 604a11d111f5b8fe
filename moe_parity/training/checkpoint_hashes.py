"""Hashes of a checkpoint's files, in the checkpoint itself: what was written is what is read.

`hashes.json` names the size and sha256 of every file of the checkpoint and the run that it is of.
It is written before the checkpoint gets its name, so a checkpoint that is whole has it.
"""

import concurrent.futures
import hashlib
import json
import pathlib

from moe_parity import files
from moe_parity.data import storage
from moe_parity.errors import UserError
from moe_parity.stored.shape import mismatch

HASHES = "hashes.json"
METADATA = "_CHECKPOINT_METADATA"  # orbax's, with the mark that there must be hashes
MARK = {"moe_parity_hashes": 1}
_SCHEMA = {"step": int, "run": str, "files": {str: [object]}}


def write_hashes(folder: pathlib.Path, step: int, run: str = "") -> None:
  """Writes hashes.json of a checkpoint that is otherwise complete; all of it is on disk then.

  Args:
    run: identifies the run that it is of (`run_identity`).
  """
  by_name = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
  for path in by_name.values():
    files.sync(path)
  hashes = dict(zip(by_name, _hashed(list(by_name.values())), strict=True))
  value = {"step": step, "run": run, "files": hashes}
  files.write_json(folder / HASHES, value, seal=True)
  for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
    files.sync(path)


def problem(folder: pathlib.Path, run: str = "", *, part: int = 0, num_parts: int = 1) -> str:
  """What is wrong with a checkpoint, a phrase that names a file; "" for nothing.

  Args:
    run: that it must be of; "" for any.
    part, num_parts: looks at every `num_parts`-th file from `part`, so that processes can share.
  """
  try:
    stored = _read(folder / HASHES)
  except FileNotFoundError:
    return f"its {HASHES} is missing" if is_marked(folder) else ""
  except (UserError, OSError) as error:
    return f"{HASHES}: {error}"
  if run and stored["run"] and stored["run"] != run:
    return "it is of another run"
  if str(stored["step"]) != folder.name:
    return f"it is of step {stored['step']}"
  names = sorted(stored["files"])
  if missing := [name for name in names if not storage.is_file_inside(folder, name)]:
    return f"{missing[0][:80]} is missing"
  names = names[part::num_parts]
  for name, value in zip(names, _hashed([folder / name for name in names]), strict=True):
    if value != stored["files"][name]:
      return f"{name} is not what was written"
  return ""


def is_hashed(folder: pathlib.Path) -> bool:
  """Whether a checkpoint has hashes; those of versions before December 2026 have none."""
  return (folder / HASHES).exists()


def is_marked(folder: pathlib.Path) -> bool:
  """Whether a checkpoint was written with hashes, by a mark in another of its files."""
  try:
    return next(iter(MARK)).encode() in (folder / METADATA).read_bytes()
  except OSError:
    return True  # orbax would not read it either


def run_identity(plan: dict) -> str:
  """Which run a checkpoint is of: a hash of its arm, seed, shape and length in plan.json."""
  named = {name: plan.get(name) for name in ("name", "seed", "architecture", "num_steps")}
  return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return [p for p in sorted(folder.rglob("*")) if p.is_file() and p != folder / HASHES]


def _hashed(paths: list[pathlib.Path]) -> list[list]:
  with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hashing lets other threads run
    hashes = list(pool.map(files.sha256_of, paths))
  return [[path.stat().st_size, value] for path, value in zip(paths, hashes, strict=True)]


def _read(path: pathlib.Path) -> dict:
  value = files.read_json(path)
  if problem := mismatch(value, _SCHEMA):
    raise UserError(f"{HASHES} is damaged: {problem}")
  return value
