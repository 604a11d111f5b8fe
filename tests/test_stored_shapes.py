"""JSON that is read back: any part replaced by another type is one line naming file and field."""

import copy
import dataclasses
import json
import math
import pathlib
import re

import numpy as np
import pytest

from moe_parity import files
from moe_parity.downstream import results
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.finetuning_plan import FinetuningPlan
from moe_parity.stored import read, run_files
from moe_parity.stored.shape import mismatch, not_finite
from moe_parity.study import reading
from moe_parity.study.analysis import compare, statistics, uncertainty
from moe_parity.training import run_folder
from tests.helpers import fake_steps, fake_study

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
WRONG = (None, "x", [], {}, -1.5, math.nan, True, [[1]], 10**400)
# What holds anything: values of checks, and words that others wrote.
FREE = {"planned", "measured", "config", "key", "by_domain", "template"}
EXAMINED = {
  "task": "a", "source": "here", "category": "", "benchmark": "", "kind": "choice",
  "metric": "accuracy", "num_shots": 0, "num_items": 3, "num_items_of_task": 3, "majority": None,
  "seconds": 0.1,
}  # fmt: skip
CHATS = {"cross_entropy": 1.0, "bpc": 1.4, "nats": 9.0, "num_tokens": 9, "num_chars": 9,
         "num_examples": 1,
         "examples": [{"digest": "a", "nats": 9.0, "num_tokens": 9, "num_chars": 9}]}  # fmt: skip
TRIED = {"candidate": "lr0p1_e1", "learning_rate": 0.1, "epochs": 1, "cross_entropy": 1.0,
         "bpc": 1.4, "text_bpc": 2.0}  # fmt: skip
OF_ARM = {"name": "a", "seed": 0, "kind": "moe", "role": "arm", "base": "runs/a-s0",
          "activation_rate": 0.2, "tried": [TRIED]}  # fmt: skip
CHOSEN = {"chosen": "lr0p1_e1", "edges": ["an end"], "learning_rate": 0.1, "epochs": 1,
          "folder": "parts/sft/runs/a-s0", "before": CHATS, "after": CHATS,
          "text_bpc_before": 2.0, "text_bpc_after": 2.0}  # fmt: skip
OTHERS = {
  "finetuning.json": {"candidates": ["lr0p1_e1"], "complete": True, "passed": True,
                      "arms": [OF_ARM], "chosen": [OF_ARM | CHOSEN]},
  "sft/finetuning.json": {"chosen": "lr0p1_e1", "candidates": [TRIED]},
  "sft/before.json": CHATS,
  "runs/dense-s0/data.json": {
    "fingerprint": dict.fromkeys(run_files.DATA["fingerprint"], "ab"),
    "versions": [{"jax": "0.12.0"}],
  },
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shapes")
  fake = fake_study.Fake(
    rates=(0.17, 0.26, 0.38), seeds=(0, 1), seed_sd=0.003, ablation_cost=0.03, num_steps=30,
    controls={"dense_active": (150_000, 1.93)}, statuses={("moe_38", 1): "failed"},
  )  # fmt: skip
  fake_study.write_study(folder, fake)
  fake_steps.write_steps(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(uncertainty, "NUM_DRAWS", 200)
    patch.setattr(statistics.uncertainty, "NUM_DRAWS", 200)
    compare.write_analysis(folder)
  for name, value in OTHERS.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / name, value, seal=True)
  return folder


NAMES = [
  "study.json", "plan.json", "analysis.json", "architecture.json", "activation_rate.json",
  "data_reuse.json", "certificate.json", "runs/dense-s0/plan.json", "runs/moe_26-s0/plan.json",
  "runs/moe_26-s0/result.json", "runs/moe_26-s0/certificate.json", *OTHERS,
]  # fmt: skip


def nodes(value, path=()):
  """(path, part) of every part; of a list the first item, its others being alike."""
  yield path, value
  if isinstance(value, dict):
    for name, item in value.items():
      yield from nodes(item, (*path, name))
  elif isinstance(value, list) and value:
    yield from nodes(value[0], (*path, 0))


def trimmed(value):
  """The value with one item of every list but pairs, the others being alike."""
  if isinstance(value, dict):
    return {name: trimmed(item) for name, item in value.items()}
  if isinstance(value, list):
    return [trimmed(item) for item in (value if len(value) == 2 else value[:1])]
  return value


def with_part(value, path, part):
  name, *rest = path
  value = copy.copy(value)
  value[name] = with_part(value[name], rest, part) if rest else part
  return value


def without_part(value, path):
  name, *rest = path
  value = copy.copy(value)
  if rest:
    value[name] = without_part(value[name], rest)
  else:
    del value[name]
  return value


def alike(wrong, right):
  """Whether a shape may take both: numbers, and lists that hold nothing to tell them by."""
  number = (int, float)
  if isinstance(wrong, bool) or isinstance(right, bool):
    return type(wrong) is type(right)
  if isinstance(wrong, number) and isinstance(right, number):
    return math.isfinite(wrong) if isinstance(wrong, float) else wrong < 10**30
  return isinstance(wrong, type(right)) or isinstance(right, type(wrong))


@pytest.mark.parametrize("name", NAMES)
def test_any_part_of_another_type_is_named(study, name):
  value = trimmed(files.read_json(study / name))
  path_of_file = study / name
  shape = read.shape_of(path_of_file.name, value)
  assert mismatch(value, shape) == "" and not not_finite(value)
  tried = 0
  for path, part in list(nodes(value))[1:]:
    if FREE & set(map(str, path)) or (len(path) > 1 and part is None):
      continue
    for wrong in WRONG:
      if wrong is None or alike(wrong, part):
        continue  # whether null is allowed is the next test's
      text = ""
      try:
        read.check(with_part(value, path, wrong), shape, path_of_file)
      except UserError as error:
        text = str(error)
      named = str(path[-1] if isinstance(path[-1], str) else path[-2])
      assert "\n" not in text and len(text) < 600 and str(path_of_file) in text, (path, wrong, text)
      assert named in text, (path, wrong, text)
      tried += 1
  assert tried > 10


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_or_null_is_named_or_allowed(study, name):
  """Null and missing are treated alike: both are refused, or both are allowed."""
  value = trimmed(files.read_json(study / name))
  shape = read.shape_of(name.rpartition("/")[2], value)
  for path, _ in list(nodes(value))[1:]:
    if FREE & set(map(str, path)) or not isinstance(path[-1], str):
      continue
    missing, null = (
      mismatch(other, shape) for other in (without_part(value, path), with_part(value, path, None))
    )
    free = missing == "" and null != ""  # a name that the user chose
    assert free or bool(missing) == bool(null), (path, missing, null)
    assert not missing or path[-1] in missing, (path, missing)


def test_a_number_that_is_not_finite_is_named_anywhere():
  assert not_finite({"a": [1.0, {"b": math.nan}]}) == "a[1].b"
  assert not_finite({"a": [1.0, -math.inf]}) == "a[1]"
  assert not_finite({"a": [1.0, None, "nan", 10**400]}) == ""


def test_what_is_written_has_null_for_a_number_json_lacks(tmp_path):
  files.write_json(tmp_path / "a.json", {"a": (math.nan, 1.5), "b": {"c": -math.inf}}, seal=True)
  assert "NaN" not in (tmp_path / "a.json").read_text()
  assert files.read_json(tmp_path / "a.json") == {"a": [None, 1.5], "b": {"c": None}}
  with pytest.raises(ValueError, match="not JSON compliant"):
    files.write_json(tmp_path / "b.json", {"a": math.nan}, allow_nan=False)


BROKEN = {
  "half a surrogate pair": '{"name": "\\ud83d"}',
  "deep": "[" * 100_000,
  "deep in a field": '{"name": "a", "arms": [], "extra": ' + "[" * 500 + "]" * 500 + "}",
  "cut": '{"a": 1',
  "empty": "",
  "blank": " \n",
  "two values": '{"a": 1} {"a": 1}',
  "one name twice": '{"name": "a", "arms": [], "name": "b"}',
  "one name twice below": '{"name": "a", "arms": [{"seed": 0, "seed": 1}]}',
  "a huge number": '{"name": "a", "arms": [{"seed": ' + "9" * 5000 + "}]}",
  "UTF-16": '{"a": 1}'.encode("utf-16"),
  "a top-level list": '[{"name": "a"}]',
  "text": '"a"',
  "null": "null",
  "infinite": '{"name": "a", "arms": [], "config": {"x": [1e999]}}',
  "NaN": '{"name": "a", "arms": [], "config": {"x": NaN}}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_json_object_is_one_line(tmp_path, what):
  """Of two equal names the last one counted; 500 levels ended in a RecursionError."""
  text = BROKEN[what]
  for name in ("study.json", "result.json", "plan.json", "certificate.json", "config.json"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for act in (read.read_json, run_folder.read_json):
      with pytest.raises(UserError, match=rf"{name} is (not JSON|damaged) \(") as caught:
        act(path)
      assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_line_of_metrics_is_counted(tmp_path, what):
  text = BROKEN[what]
  line = '{"kind": "train", "step": 3, "num_tokens": 9, "cross_entropy": 1.0}\n'
  content = (text if isinstance(text, bytes) else text.encode()).replace(b"\n", b"")
  (tmp_path / "metrics.jsonl").write_bytes(line.encode() + content + b"\n" + line.encode())
  train, _, problem = reading.read_metrics(tmp_path)
  assert len(train) == 1
  assert problem == ("" if not content.strip() else "metrics.jsonl has 1 unreadable lines")


COMMITTED = [p for p in sorted(RESULTS.rglob("*.json")) if read.shape_of(p.name, {}) != {}]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.relative_to(RESULTS).as_posix())
def test_files_of_earlier_versions_are_still_read(path):
  assert read.read_json(path)


def test_names_of_domains_are_checked_in_every_file(study):
  value = files.read_json(study / "runs/moe_26-s0/result.json")
  domain = next(iter(value["validation"]["by_domain"]))
  for name in ("a\nb", "a\0", "", "\u202etxt", "\x85", "x" * 2000):
    rows = value["validation"]["by_domain"] | {name: value["validation"]["by_domain"][domain]}
    problem = mismatch(with_part(value, ("validation", "by_domain"), rows), run_files.RESULT)
    assert problem.startswith("validation.by_domain: the name is ") and problem.isprintable()


def test_the_shape_of_a_plan_has_its_fields():
  names = {name.removesuffix("?") for name in run_files.ARM_PLAN}
  assert names == {field.name for field in dataclasses.fields(FinetuningPlan)}
  assert names - {"finetuning"} == {field.name for field in dataclasses.fields(ArmPlan)}


def test_a_damaged_result_of_a_benchmark_is_named(tmp_path):
  place = results.ResultFile(tmp_path, "a", {"items": "x"})
  values = results.Values(("0", "1", "2"), {"accuracy": np.array([1.0, 0.0, 1.0])})
  scores = {"scores": results.scores_of(values, {"accuracy": 0.25})}
  value = place.write(EXAMINED | scores, values)
  assert len(results.read_all(tmp_path)) == 1
  for path, part, word in (
    (("values",), "../../x.npz", "values is '../../x.npz'"),
    (("metric",), "f1", "scores has no 'f1'"),
    (("scores", "accuracy", "value"), "high", "scores['accuracy'].value is 'high'"),
    (("scores", "accuracy", "interval"), [0.1], "interval is a list of 1, not of 2"),
    (("num_items",), 0, "num_items is 0, which is below 1"),
  ):
    place.json.write_text(json.dumps(with_part(value, path, part)))
    for act in (place.read, lambda: results.read_all(tmp_path)):
      with pytest.raises(UserError, match=f"is damaged .*{re.escape(word)}.*; remove it and run"):
        act()


@pytest.fixture
def changed(study, tmp_path):
  """The study's files with one replaced, as a function of its name and content."""

  def change(name, value):
    folder = tmp_path / "study"
    if not folder.exists():
      for path in sorted(study.rglob("*.json")):
        (folder / path.relative_to(study)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(study)).write_bytes(path.read_bytes())
    text = json.dumps({k: v for k, v in value.items() if k != files.SEAL})
    (folder / name).write_text(text)
    return folder

  return change


def test_a_run_with_a_damaged_field_is_named_and_not_compared(study, changed):
  value = files.read_json(study / "runs/moe_26-s0/result.json")
  for path, part, word in (
    (("validation", "documents", 0, "nats"), "7", r"documents\[0\].nats"),
    (("validation", "bpc"), None, "validation.bpc"),
    (("validation",), [], "validation is a list, not an object"),
    (("ablations", "routed_removed"), 3, "routed_removed"),
  ):
    folder = changed("runs/moe_26-s0/result.json", with_part(value, path, part))
    found = reading.read_study(folder)
    (problem,) = found.problems
    assert "result.json is damaged" in problem and word.replace("\\", "") in problem, problem
    assert [run.status for run in found.runs if run.folder.name == "moe_26-s0"] == ["missing"]
    with pytest.raises(UserError, match=word):
      run_folder.read_json(folder / "runs/moe_26-s0/result.json")


def test_a_study_with_a_damaged_field_is_refused(study, changed):
  for name, path, part in (
    ("study.json", ("arms", 0, "status"), "perhaps"),
    ("plan.json", ("arms", 0, "num_tokens"), 0),
    ("plan.json", ("budget",), None),
    ("plan.json", ("arms",), {}),
  ):
    value = files.read_json(study / name)
    folder = changed(name, with_part(value, path, part))
    with pytest.raises(UserError, match=rf"{name} is damaged \({path[0]}") as caught:
      reading.read_study(folder)
    assert "\n" not in str(caught.value)
    changed(name, value)


@pytest.mark.parametrize("name", ["study.json", "runs/moe_26-s0/result.json"])
def test_fields_that_may_be_missing_are_done_without(study, changed, monkeypatch, name):
  """Analysis of a study in which each of them in turn is null, as an earlier version left it."""
  monkeypatch.setattr(uncertainty, "NUM_DRAWS", 20)
  value = files.read_json(study / name)
  shape = read.shape_of(name.rpartition("/")[2], value)
  tried = 0
  for path, part in list(nodes(value))[1:]:
    other = with_part(value, path, None)
    if part is not None and isinstance(path[-1], str) and not mismatch(other, shape):
      compare.analyze(changed(name, other))
      compare.analyze(changed(name, without_part(value, path)))
      tried += 1
  assert tried
