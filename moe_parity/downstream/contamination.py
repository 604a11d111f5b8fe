"""How much of a task's items stands in what a run was trained on: 13-grams of words.

The text of pretraining and the chats of fine-tuning are counted apart. All text that the run's
token store has for training is read once for all tasks; a run may have read a part of it only, so a
count is the most that it can have seen. A count is stored under a hash of the text and the items.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from moe_parity import files
from moe_parity.data import contamination
from moe_parity.data.readers import Document
from moe_parity.downstream.results import FOLDER, OVERLAPS
from moe_parity.stored import read as stored
from moe_parity.stored.analysis_file import OVERLAP

NUM_WORDS = 13
EXAMPLES = 3
TEXT, CHATS = "contamination", "chat_contamination"  # of a result: in pretraining text, in chats
NOT_SEARCHED = "not_searched"  # lines on what could not be searched
IN_WORDS = {TEXT: "the training text", CHATS: "the chats of fine-tuning"}
_WAY_OUT = "remove it: the overlap is counted again"


def count(
  run: pathlib.Path,
  fingerprint: Mapping[str, str],
  documents: Callable[[], Iterable[Document]],
  questions: Mapping[str, Mapping[str, str]],
  progress: Callable[[int], None] | None = None,
) -> dict[str, dict]:
  """Task -> num_items, num_contaminated (share an n-gram with the training text), num_too_short
  (have none, so nothing can be said), items (names of the contaminated), examples.

  Args:
    fingerprint: of the training text. documents: gives it, if it has to be read.
    questions: task -> item -> its own text, without examples.
    progress: called with the characters of training text read so far.
  """
  digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode())
  digest.update(json.dumps({name: dict(texts) for name, texts in questions.items()}).encode())
  path = run / FOLDER / f"{OVERLAPS}{digest.hexdigest()[:12]}.json"
  if path.is_file():
    value = files.read_json(path, _WAY_OUT)
    stored.check(value, OVERLAP, path, _WAY_OUT)
    return value["by_task"]
  wanted = [
    Document(text, task, name) for task, texts in questions.items() for name, text in texts.items()
  ]
  found = contamination.overlap(documents(), wanted, NUM_WORDS, progress)
  by_task = {task: _of_task(found, task) for task in questions}
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(path, {"num_words": NUM_WORDS, "by_task": by_task}, seal=True)
  return by_task


def _of_task(found: dict, task: str) -> dict:
  counts = found["by_domain"].get(task, {})
  hits = [row for row in found["documents"] if row["domain"] == task]
  return {
    "num_items": counts.get("num_documents", 0),
    "num_contaminated": counts.get("num_contaminated", 0),
    "num_too_short": counts.get("num_too_short", 0),
    "items": [row["source"] for row in hits],
    "examples": [row["example"] for row in hits[:EXAMPLES]],
  }


def of_run(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """TEXT and CHATS -> task -> counts, and NOT_SEARCHED, from a run's results."""
  by_kind = {kind: {r["task"]: r[kind] for r in results if r.get(kind)} for kind in (TEXT, CHATS)}
  return by_kind | {NOT_SEARCHED: list(results[0].get(NOT_SEARCHED, [])) if results else []}


def of_study(by_run: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
  """`of_run` of many: TEXT, CHATS and NOT_SEARCHED -> run, for runs that have any."""
  return {
    kind: {label: found[kind] for label, found in by_run.items() if found.get(kind)}
    for kind in (TEXT, CHATS, NOT_SEARCHED)
  }


def lines(by_task: Mapping[str, dict], kind: str = TEXT) -> Iterator[str]:
  """What to say of every task.

  Args:
    kind: TEXT or CHATS, where the items were looked for.
  """
  for task, row in by_task.items():
    yield (
      f"{task}: {row['num_contaminated']} of {row['num_items']} items share {NUM_WORDS} words in a"
      f" row with {IN_WORDS[kind]}; {row['num_too_short']} are too short to tell"
    )


def without(names: Sequence[str], contaminated: Collection[str]) -> list[int]:
  """Places of the items that are not contaminated."""
  found = set(contaminated)
  return [place for place, name in enumerate(names) if name not in found]
