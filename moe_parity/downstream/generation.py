"""Texts that a model writes after the prompts of a task, greedily, in batches of like lengths."""

from collections.abc import Callable, Iterator

import numpy as np

from moe_parity.data.inner_text import decode_after
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

  A prompt leaves room for what it may be continued by: at most half of the window, so that a
  question stays readable; `report` says where that is less than its limit. What of a prompt does
  not fit is cut from its front. Neither depends on the other prompts.

  Args:
    rows: ids of prompts, none empty.
    limits: ids to generate at most, of each.
    stops: texts that end each; they are left out. So do the ids that begin or end a document.
  """
  texts, num_cut = [""] * len(rows), np.zeros(len(rows), np.int64)
  window, half = examinee.num_positions, max(examinee.num_positions // 2, 1)
  if shortened := sum(limit > half for limit in limits):
    report(
      f"{name}: of the window's {window} positions {half} are for what is written, fewer than the"
      f" {max(limits)} tokens that {shortened} of {len(rows)} items may have"
    )
  limits, done = [min(limit, half) for limit in limits], 0
  for members in _batches([len(row) for row in rows], limits):
    limit, shown = limits[members[0]], []
    for m in members:
      num_cut[m] = max(len(rows[m]) - (window - limit), 0)
      shown.append(rows[m][num_cut[m] :])
    found = _batch(examinee, shown, members, limit, limits, stops)
    for m, text in zip(members, found, strict=True):
      texts[m] = text
    done += len(members)
    report(f"{name}: {done} of {len(rows)} texts")
  return texts, num_cut


def _batches(lengths: list[int], limits: list[int]) -> Iterator[list[int]]:
  """Numbers of prompts of like lengths that may be continued equally far."""
  for limit in sorted(set(limits)):
    members = [m for m, other in enumerate(limits) if other == limit]
    members.sort(key=lambda m: lengths[m])
    for start in range(0, len(members), NUM_AT_ONCE):
      yield members[start : start + NUM_AT_ONCE]


def _batch(examinee: Examinee, shown, members, limit, limits, stops) -> list[str]:
  tokenizer = examinee.tokenizer
  ends = tokenizer.end_ids
  ids: list[list[int]] = [[] for _ in members]
  texts, open_rows = [""] * len(members), set(range(len(members)))
  for token_B in examinee.generator.generate(shown, limit):
    for row in sorted(open_rows):
      token, m = int(token_B[row]), members[row]
      if token not in ends:
        ids[row].append(token)
        texts[row] = decode_after(tokenizer, int(shown[row][-1]), ids[row])
      places = [texts[row].find(stop) for stop in stops[m] if stop in texts[row]]
      if places:
        texts[row] = texts[row][: min(places)]
      if token in ends or places or len(ids[row]) >= limits[m]:
        open_rows.discard(row)
    if not open_rows:
      break
  return texts
