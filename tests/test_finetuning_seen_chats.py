"""Items in the chats that a run was fine-tuned on: searched, counted apart, or said not to be."""

import json
import pathlib
import types

import numpy as np
import pytest

from moe_parity.data.tokenizer import byte_tokenizer
from moe_parity.defaults import base
from moe_parity.downstream import contamination, exam
from moe_parity.downstream.exam import Exam
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.results import FOLDER, ResultFile, Values, scores_of
from moe_parity.errors import UserError
from moe_parity.finetuning.chat_rows import open_chats
from moe_parity.finetuning.chats import read_chats
from moe_parity.finetuning.seen_chats import seen_chats
from moe_parity.report import downstream as report
from tests.helpers import chats

SEQ_LEN = 256
WORDS = [f"word{n}" for n in range(40)]
ANSWER = " ".join(WORDS)


@pytest.fixture
def tuned(tmp_path):
  """(config, plan) of a run whose chats include one with 40 words that no other text has."""
  made = [*chats.chats(30), [{"role": "user", "content": "Say it."},
                             {"role": "assistant", "content": ANSWER[:200]}]]  # fmt: skip
  config = base()
  config.finetuning.data = chats.write(tmp_path / "chats.jsonl", made)
  config.finetuning.held_out = 0.2
  rows = open_chats(config.finetuning, byte_tokenizer(), seq_len=SEQ_LEN, scored_at_a_time=2)
  return config, {"seq_len": SEQ_LEN, "finetuning": rows.counts}


def seen(tuned):
  return seen_chats(pathlib.Path("run"), *tuned, byte_tokenizer())


def test_chats_of_training_are_read_without_those_held_out(tuned):
  config, plan = tuned
  every, _ = read_chats(config.finetuning.data)
  wanted = ["\n".join(m["content"] for m in c.messages) for c in every if not c.is_held_out(0.2)]
  found = seen(tuned)
  assert [document.text for document in found.documents] == wanted and len(wanted) < len(every)
  assert found.fingerprint == {"chats_sha256": plan["finetuning"]["chats_sha256"]}


def test_a_pretrained_run_has_no_chats(tuned):
  assert seen((tuned[0], {"seq_len": SEQ_LEN})) is None


def test_chats_that_are_gone_or_changed_are_named(tuned):
  path = pathlib.Path(tuned[0].finetuning.data)
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:-4]))
  with pytest.raises(UserError, match=r"its chats changed \(num_examples is .*; put back"):
    seen(tuned)
  path.unlink()
  with pytest.raises(UserError, match=r"cannot be read any more \(.*chats.jsonl is no file") as e:
    seen(tuned)
  assert str(e.value).endswith(f"put back what finetuning.data={path} in run/config.json named")


class Student(Examinee):
  """What the search reads of an examined run, whose training text is not on this machine."""

  def __init__(self, folder, tuned=(None, None)):
    self.folder, self.tokenizer = folder, byte_tokenizer()
    self.run = types.SimpleNamespace(config=tuned[0], plan=tuned[1])

  def training_text(self):
    raise UserError("the store is gone; make it again")


QUESTIONS = {"zoo": {"0": " ".join(WORDS[3:18]), "1": " ".join(reversed(WORDS)), "2": "short"}}


def overlaps(folder, tuned, said, **fields):
  made, asked = Student(folder, tuned), Exam((), **fields)
  return exam._overlaps(made, asked, QUESTIONS, said.append, seen_chats)


def test_items_in_chats_are_counted_apart_from_the_text(tuned, tmp_path):
  said = []
  found, missing = overlaps(tmp_path, tuned, said)
  assert set(found) == {contamination.CHATS}  # the text cannot be searched, and that is said
  reason = "overlap with the training text is not counted: the store is gone; make it again"
  assert missing == said == [reason]
  row = found[contamination.CHATS]["zoo"]
  assert (row["num_items"], row["num_contaminated"], row["num_too_short"]) == (3, 1, 1)
  assert row["items"] == ["0"]
  (line,) = contamination.lines(found[contamination.CHATS], contamination.CHATS)
  assert line.startswith("zoo: 1 of 3 items share 13 words in a row with the chats of fine-tuning;")
  assert overlaps(tmp_path, tuned, [], counts_overlap=False) == ({}, [])
  # A second search is answered by the first, as long as chats and items are the same.
  (path,) = (tmp_path / "downstream").glob("contamination-*.json")
  stored = json.loads(path.read_text())
  assert stored["by_task"] == found[contamination.CHATS]


def test_a_report_shows_text_and_chats_and_what_is_missing(tuned, tmp_path):
  said = []
  pathlib.Path(tuned[0].finetuning.data).unlink()
  _, missing = overlaps(tmp_path, tuned, said)
  assert len(missing) == 2 and "chats of fine-tuning is not counted: its chats cannot" in missing[1]
  counts = {"num_items": 5, "num_contaminated": 2, "num_too_short": 0, "items": [], "examples": []}
  results = [{"task": "zoo", contamination.TEXT: counts, contamination.NOT_SEARCHED: []}]
  tuned_results = [{"task": "zoo", contamination.TEXT: {}, contamination.NOT_SEARCHED: missing}]
  chat_results = [{"task": "zoo", contamination.TEXT: counts,
                   contamination.CHATS: counts | {"num_contaminated": 1}}]  # fmt: skip
  of_runs = {"a": results, "b": tuned_results, "sft/c": chat_results}
  by_run = {label: contamination.of_run(r) for label, r in of_runs.items()}
  found = contamination.of_study(by_run)
  assert set(found[contamination.TEXT]) == {"a", "sft/c"}
  lines = report._contamination(found)
  assert lines[:2] == [
    "Items that share 13 words in a row with the training text (a, sft/c): zoo 2 of 5.",
    "Items that share 13 words in a row with the chats of fine-tuning (sft/c): zoo 1 of 5.",
  ]
  assert lines[2] == f"b: {missing[0]}." and lines[3] == f"b: {missing[1]}."


def test_a_score_is_clean_without_items_of_either(tmp_path):
  """Four items: one in the text, one in the chats."""
  values = Values(("0", "1", "2", "3"), {"accuracy": np.array([1.0, 0.0, 1.0, 1.0])})
  place = ResultFile(tmp_path, "zoo", {"checkpoint": "x"})
  stated = {
    "task": "zoo", "metric": "accuracy", "category": "", "source": "test", "benchmark": "",
    "kind": "choices", "num_shots": 0, "num_items": 4, "num_items_of_task": 4, "seconds": 0.1,
    "scores": scores_of(values, {}),
  }  # fmt: skip
  result = place.write(stated, values)
  assert (tmp_path / FOLDER / result["values"]).is_file()
  who = Student(tmp_path)
  found = {contamination.TEXT: {"zoo": {"items": ["0"]}},
           contamination.CHATS: {"zoo": {"items": ["3"]}}}  # fmt: skip
  assert exam._with_overlap(who, result, found, [])["clean_score"] == 0.5
  assert exam._with_overlap(who, result, {}, ["why"])["not_searched"] == ["why"]
  del found[contamination.CHATS]
  assert exam._with_overlap(who, result, found, [])["clean_score"] == pytest.approx(2 / 3)
