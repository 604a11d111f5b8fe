"""Texts that a model writes after the prompts of a task, greedily, in batches of like lengths."""

from collections.abc import Callable

import numpy as np

from moe_parity.downstream import prompts
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.tasks import BenchmarkTask

NUM_AT_ONCE = 32


def generated(
  examinee: Examinee, task: BenchmarkTask, report: Callable[[str], None] = lambda line: None
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """(text of every item, ids cut from the front of its prompt, ids of its prompt)."""
  texts = [item.contexts[0] for item in task.items]
  ids = prompts.contexts(texts, examinee.tokenizer, examinee.template)
  rows = [ids[text] for text in texts]
  limits = [item.max_tokens for item in task.items]
  stops = [item.stop for item in task.items]
  texts, num_cut = continued(examinee, rows, limits, stops, task.name, report)
  return texts, num_cut, np.array([len(row) for row in rows])


def continued(
  examinee: Examinee,
  rows: list[np.ndarray],
  limits: list[int],
  stops: list[tuple[str, ...]],
  name: str = "generation",
  report: Callable[[str], None] = lambda line: None,
) -> tuple[list[str], np.ndarray]:
  """(text after each prompt, ids cut from its front).

  A prompt leaves room for what it may be continued by: what does not fit is cut from its front, at
  least one id of it stays.

  Args:
    rows: ids of prompts.
    limits: ids to generate at most, of each.
    stops: texts that end each; they are left out. So do the ids that begin or end a document.
  """
  texts, num_cut = [""] * len(rows), np.zeros(len(rows), np.int64)
  window = examinee.num_positions
  order = np.argsort([len(row) for row in rows], kind="stable")
  for start in range(0, len(order), NUM_AT_ONCE):
    members = order[start : start + NUM_AT_ONCE].tolist()
    limit = min(max(limits[m] for m in members), window - 1)
    shown = []
    for m in members:
      num_cut[m] = max(len(rows[m]) - (window - limit), 0)
      shown.append(rows[m][num_cut[m] :])
    found = _batch(examinee, shown, members, limit, limits, stops)
    for m, text in zip(members, found, strict=True):
      texts[m] = text
    report(f"{name}: {start + len(members)} of {len(rows)} texts")
  return texts, num_cut


def _batch(examinee: Examinee, shown, members, limit, limits, stops) -> list[str]:
  tokenizer = examinee.tokenizer
  ends = {tokenizer.bos_id, tokenizer.eos_id}
  ids: list[list[int]] = [[] for _ in members]
  texts, open_rows = [""] * len(members), set(range(len(members)))
  for token_B in examinee.generator.generate(shown, limit):
    for row in sorted(open_rows):
      token, m = int(token_B[row]), members[row]
      if token not in ends:
        ids[row].append(token)
        texts[row] = tokenizer.decode(ids[row])
      places = [texts[row].find(stop) for stop in stops[m] if stop in texts[row]]
      if places:
        texts[row] = texts[row][: min(places)]
      if token in ends or places or len(ids[row]) >= limits[m]:
        open_rows.discard(row)
    if not open_rows:
      break
  return texts
