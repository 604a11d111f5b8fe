"""The small sweep behind a fine-tuned run: every arm tries the same candidates, as often and as
long, and keeps the one with the lowest loss on held-out chats.

A candidate is a learning rate, as a multiple of the arm's own pretraining peak, and a number of
passes. The choice is made on the chats that the winner's score is then stated for, which flatters
it a little and all arms alike; `finetuning.json` lists every candidate.
"""

import itertools
import math
import os
import pathlib
import re
import shutil
from collections.abc import Sequence

from ml_collections import ConfigDict

from moe_parity import files
from moe_parity.errors import UserError
from moe_parity.planning.finetuning_plan import CANDIDATE_NAME, candidate_name, check_candidate
from moe_parity.training import run_folder

SWEEP = "finetuning.json"
CANDIDATES = "candidates"


def candidates(settings: ConfigDict) -> list[tuple[float | int, int]]:
  """(learning rate, epochs) of every candidate, in the order of the config.

  Raises:
    UserError: none, one twice, or one that cannot be.
  """
  rates, epochs = tuple(settings.learning_rates), tuple(settings.epochs)
  if not rates or not epochs:
    raise UserError(
      f"finetuning.learning_rates={rates} and epochs={epochs} leave no candidate; give one of each"
    )
  pairs = list(itertools.product(rates, epochs))
  for pair in pairs:
    check_candidate(*pair)
  names = [candidate_name(*pair) for pair in pairs]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f"finetuning: candidate {twice} is there twice; name each rate and epoch once")
  return pairs


def check_out(out: pathlib.Path) -> None:
  """
  Raises:
    UserError: a file, or a folder that is not empty and of no sweep: `adopt` would remove what it
      holds.
  """
  if out.exists() and not out.is_dir():
    raise UserError(f"--out={out} is a file; give a new folder")
  held = {path.name for path in out.iterdir()} if out.exists() else set()
  tried = [path.name for path in (out / CANDIDATES).iterdir()] if CANDIDATES in held else []
  strange = [name for name in tried if not re.fullmatch(CANDIDATE_NAME, name)]
  if strange or (held - {CANDIDATES, "lease"} and not tried):
    what = f"{CANDIDATES}/{strange[0]}" if strange else "no fine-tuned run"
    raise UserError(f"--out={out} is not empty and holds {what}; give a new folder")


def check_candidates(out: pathlib.Path, counts: dict) -> None:
  """
  Args:
    counts: of the chats, and the hash of the checkpoint that all begin with.
  Raises:
    UserError: a candidate that is there already reads other chats, or was made from another run:
      they could not be compared.
  """
  for path in sorted((out / CANDIDATES).glob(f"*/{run_folder.PLAN}")):
    stated = run_folder.read_json(path).get("finetuning", {})
    for name, value in counts.items():
      if stated.get(name) != value:
        raise UserError(
          f"{path.parent} was trained with {name}={stated.get(name)}, and now it would be {value};"
          " use another --out, or remove this one"
        )


def row_of(learning_rate: float | int, epochs: int, result: dict | None) -> dict:
  """A candidate and its loss on held-out chats; infinite where it diverged (no result)."""
  score = result["finetuning"]["validation"] if result else None
  return {
    "candidate": candidate_name(learning_rate, epochs),
    "learning_rate": learning_rate,
    "epochs": epochs,
    "cross_entropy": score["cross_entropy"] if score else math.inf,
    "bpc": score["bpc"] if score else math.inf,
    "text_bpc": result["validation"]["bpc"] if result else math.inf,
  }


def best(rows: Sequence[dict]) -> dict:
  """The candidate with the lowest loss, the first of equals.

  Raises:
    UserError: all diverged.
  """
  row = min(rows, key=lambda row: row["cross_entropy"])
  if not math.isfinite(row["cross_entropy"]):
    names = ", ".join(row["candidate"] for row in rows)
    raise UserError(f"every candidate diverged ({names}); lower finetuning.learning_rates")
  return row


def edges(chosen: dict, tried: Sequence[dict]) -> list[str]:
  """Where the kept candidate is at an end of what was tried, so that a better one may lie beyond;
  passes have no end below one."""
  sentences = []
  for field, words in (("learning_rate", "learning rate"), ("epochs", "number of passes")):
    values = sorted({row[field] for row in tried})
    ends = {values[-1]: "highest"} | ({} if values[0] == 1 and field == "epochs" else
                                      {values[0]: "lowest"})  # fmt: skip
    if len(values) > 1 and chosen[field] in ends:
      sentences.append(f"the {words} kept, {chosen[field]:g}, is the {ends[chosen[field]]} tried")
  return sentences


def label(arm: dict) -> str:
  """What an arm of finetuning.json is called: its name, behind the reuse scheme that it is of."""
  return "/".join(filter(None, (arm.get("comparison"), arm["name"])))


def adopt(candidate: pathlib.Path, out: pathlib.Path) -> None:
  """Makes `out` the run folder that a candidate is, result.json last; files are linked where the
  disk can. What `out` held of another candidate goes first. Where it is that candidate already it
  stays as it is, with what was made of it since (benchmarks, exports, figures)."""
  if _holds(out, candidate):
    return
  names = sorted(path.name for path in candidate.iterdir())
  keep = (CANDIDATES, "lease")
  (out / run_folder.RESULT).unlink(missing_ok=True)
  for path in list(out.iterdir()):
    if path.name not in keep:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  for name in names:
    if name in (*keep, run_folder.RESULT):
      continue
    if (candidate / name).is_dir():
      shutil.copytree(candidate / name, out / name, copy_function=_link)
    else:
      shutil.copy2(candidate / name, out / name)
  files.write_bytes(out / run_folder.RESULT, (candidate / run_folder.RESULT).read_bytes())


def _holds(out: pathlib.Path, candidate: pathlib.Path) -> bool:
  """Whether `out` has all that a candidate has, and its plan and result, which is copied last."""
  if not all((out / path.name).exists() for path in candidate.iterdir() if path.name != "lease"):
    return False
  names = (run_folder.PLAN, run_folder.RESULT)
  return all((out / name).read_bytes() == (candidate / name).read_bytes() for name in names)


def _link(source: str, target: str) -> None:
  try:
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)
