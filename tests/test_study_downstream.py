"""Verdicts on benchmarks from results that are written by hand."""

import numpy as np
import pytest

from moe_parity.downstream import results
from moe_parity.downstream.results import ResultFile, Values
from moe_parity.study.analysis import downstream, seed_noise
from moe_parity.study.analysis.downstream_scales import AVERAGED, left_out_lines
from moe_parity.study.reading import RunRecord
from tests.helpers import fake_study

RNG_ITEMS = 300
RESULT = {
  "source": "here", "benchmark": "", "kind": "choice", "num_shots": 0, "num_items": RNG_ITEMS,
  "num_items_of_task": RNG_ITEMS, "majority": None, "seconds": 0.1,
}  # fmt: skip


def run(folder, name, seed, kind="moe", rate=0.2):
  plan = fake_study.arm_plan(name, kind, "arm", seed, rate, num_steps=30)
  result = {"validation": {"bpc": 2.0}}
  return RunRecord(name, seed, "done", "", folder / f"{name}-s{seed}", plan, result, {})


def examined(record, answers, bits, category="reasoning", tasks=("a", "b")):
  """The run with results for tasks whose items score `answers` and `bits` [tasks, items]."""
  found = {}
  for at, task in enumerate(tasks):
    by_metric = {"accuracy": answers[at].astype(float), "bits_per_byte": bits[at]}
    names = tuple(map(str, range(len(answers[at]))))
    place = ResultFile(record.folder, task, {"checkpoint": record.label, "items": 1})
    values = Values(names, by_metric)
    scores = results.scores_of(values, {"accuracy": 0.25})
    stated = {"task": task, "metric": "accuracy", "category": category, "scores": scores}
    place.write(RESULT | stated, values)
    (found[task],) = [r for r in results.read_all(record.folder) if r["task"] == task]
  return downstream.Examined(record.label, record, found)


def study(folder, lead, seeds=(0, 1, 2), noise=0.002, seed=0):
  """Runs of a dense and two MoE arms; the first MoE arm answers `lead` more of the items."""
  rng = np.random.default_rng(seed)
  hard = rng.random((2, RNG_ITEMS))
  found = []
  for name, kind, extra in (("dense", "dense", 0), ("moe_1", "moe", lead), ("moe_2", "moe", 0)):
    for s in seeds:
      level = 0.4 + extra + noise * rng.normal()
      answers = hard < level
      bits = 2 + hard - extra + 0.02 * rng.normal(size=hard.shape)
      found.append(examined(run(folder, name, s, kind), answers, bits))
  return found


def verdicts(found, kind, scale="accuracy"):
  rows = downstream.compare(found)["states"]["pretrained"]["comparisons"]
  return {
    (row["label"], row["arm"]): row["verdict"]
    for row in rows
    if row["kind"] == kind and row["scale"] == scale
  }


def test_a_large_lead_is_seen_and_no_lead_is_not(tmp_path):
  found = study(tmp_path, lead=0.3)
  for scale in AVERAGED:
    by_task = verdicts(found, "task", scale)
    assert by_task["a", "moe_1"] == by_task["b", "moe_1"] == "MoE better"
    assert by_task["a", "moe_2"] == "not distinguishable"
    by_category = verdicts(found, "category", scale)
    assert by_category["reasoning", "moe_1"] == by_category[downstream.ALL, "moe_1"] == "MoE better"


def test_what_seeds_do_to_dense_alone_counts(tmp_path, monkeypatch):
  told, fit = [], seed_noise.fit
  monkeypatch.setattr(seed_noise, "fit", lambda *args: told.append(args[3]) or fit(*args))
  verdicts(study(tmp_path, lead=0.2), "task")
  assert told and all(is_dense_A.sum() == 1 < len(is_dense_A) for is_dense_A in told)


def test_a_lead_of_dense_has_its_sign(tmp_path):
  found = study(tmp_path, lead=-0.3)
  assert verdicts(found, "task")["a", "moe_1"] == "dense better"
  rows = downstream.compare(found)["states"]["pretrained"]["comparisons"]
  row = next(r for r in rows if (r["label"], r["arm"], r["scale"]) == ("a", "moe_1", "accuracy"))
  assert -0.4 < row["simultaneous"][0] < row["difference"] < row["simultaneous"][1] < -0.1


def test_equal_answers_of_all_items_give_no_interval(tmp_path):
  """Nothing differs, so nothing is known of how much it could: no interval of width 0."""
  found = study(tmp_path, lead=0.0, noise=0.0)
  rows = downstream.compare(found)["states"]["pretrained"]["comparisons"]
  equal = [row for row in rows if row["scale"] == "accuracy"]
  assert equal and all(row["difference"] == 0 and row["simultaneous"] is None for row in equal)


def test_one_seed_gives_no_verdict(tmp_path):
  assert set(verdicts(study(tmp_path, 0.3, seeds=(0,)), "task").values()) == {"one seed"}


def test_intervals_hold_over_all_tasks_at_once(tmp_path):
  """A joint interval is wider than one alone."""
  rows = downstream.compare(study(tmp_path, 0.0, noise=0.02))["states"]["pretrained"]["comparisons"]
  for row in rows:
    assert row["simultaneous"][0] < row["interval"][0] < row["interval"][1] < row["simultaneous"][1]


def test_a_category_is_the_mean_of_its_tasks(tmp_path):
  state = downstream.compare(study(tmp_path, 0.1))["states"]["pretrained"]
  by = {(r["label"], r["arm"]): r["score"] for r in state["scores"] if r["scale"] == "accuracy"}
  for arm in ("dense", "moe_1", "moe_2"):
    assert by["reasoning", arm] == pytest.approx((by["a", arm] + by["b", arm]) / 2)
  assert state["baseline"] == "dense" and not state["not_in_every_run"]


def test_no_lead_is_hardly_ever_called_one(tmp_path):
  """Of 12 studies without a difference: 95 % simultaneous intervals err in less than one."""
  wrong = 0
  for seed in range(12):
    found = study(tmp_path / str(seed), 0.0, seed=seed)
    wrong += any(v != "not distinguishable" for v in verdicts(found, "task").values())
  assert wrong <= 2


def test_results_under_other_settings_are_not_mixed(tmp_path):
  found = study(tmp_path, 0.1)
  place = ResultFile(found[0].run.folder, "a", {"checkpoint": "x", "items": 2})
  values = Values(("0",), {"accuracy": np.array([1.0])})
  stated = {"task": "a", "metric": "accuracy", "category": ""}
  place.write(RESULT | stated | {"scores": results.scores_of(values, {})}, values)
  arms = [
    {"name": e.run.name, "seed": e.run.seed, "status": "done", "error": "",
     "folder": e.run.folder.name} for e in found
  ]  # fmt: skip
  fake_study.dump(tmp_path / "study.json", fake_study.study_info(arms))
  domains, chars = fake_study.documents(np.random.default_rng(0))
  for e in found:
    fake_study.dump(e.run.folder / "plan.json", e.run.plan)
    fake_study.write_result(e.run.folder, e.run.plan, domains, chars, np.full(len(chars), 2.0))
  again = downstream.read(tmp_path)
  assert len(again) == 9
  assert {e.results["a"]["key"]["items"] for e in again} == {1}


def with_metric(found, metric, values_of, lower=()):
  """The runs, with a task "c" whose main metric is `metric`; `values_of` gives its items by run."""
  for e in found:
    by_metric = {metric: values_of(e)}
    values = Values(tuple(map(str, range(len(by_metric[metric])))), by_metric)
    scores = results.scores_of(values, {metric: 0.25}, lower)
    stated = {"task": "c", "metric": metric, "category": "reasoning", "scores": scores}
    place = ResultFile(e.run.folder, "c", {"checkpoint": e.label, "items": 1})
    place.write(RESULT | stated, values)
    (e.results["c"],) = [r for r in results.read_all(e.run.folder) if r["task"] == "c"]
  return downstream.compare(found)["states"]["pretrained"]


@pytest.mark.parametrize(
  ("metric", "values", "lower"),
  [
    ("rouge1", (0.0, 0.0), ()),  # counted to 100, which a model that scores 0 does not show
    ("score", (0.5, 7.0), ()),
    ("bleu_diff", (-0.5, 0.5), ()),
    ("wrong", (0.0, 1.0), ("wrong",)),
    ("accuracy", (0.0, 100.0), ()),  # in percent
  ],
)
def test_what_is_no_share_of_right_answers_is_not_averaged(tmp_path, metric, values, lower):
  """The averages are those without the task, and a line says what is left out."""
  found = study(tmp_path, 0.1)
  before = downstream.compare(found)["states"]["pretrained"]["scores"]
  rng = np.random.default_rng(1)
  state = with_metric(found, metric, lambda e: rng.choice(values, 40), lower)
  averages = [row for row in state["scores"] if row["kind"] == "category"]
  assert averages == [row for row in before if row["kind"] == "category"]
  own = [row for row in state["scores"] if row["label"] == "c"]
  assert {row["scale"] for row in own} == {"accuracy of c" if metric == "accuracy" else metric}
  assert all(row["chance"] is None for row in own) and len(own) == 3
  (row,) = state["left_out"]
  assert (row["task"], row["metric"]) == ("c", metric)
  (line,) = left_out_lines(state)
  assert f"c: {metric} is not in averages: " in line and f"{min(values):g} to" in line


def test_a_task_that_some_runs_lack_is_named(tmp_path):
  found = study(tmp_path, 0.1)
  del found[1].results["b"]
  (state,) = downstream.compare(found)["states"].values()
  assert {row["label"] for row in state["scores"] if row["kind"] == "task"} == {"a"}
  (line,) = left_out_lines(state)
  assert line.startswith("b is not compared: not every run has a result of it")


def test_one_run_off_the_scale_takes_a_metric_off_for_all(tmp_path):
  found = study(tmp_path, 0.1)
  high = found[4].label
  state = with_metric(found, "score", lambda e: np.full(40, 3.0 if e.label == high else 0.0))
  assert state["left_out"][0]["reason"].startswith("it is no share of right answers (items score 0")
  state = with_metric(study(tmp_path / "other", 0.1), "score", lambda e: np.linspace(0, 1, 40))
  assert not state["left_out"]
  assert "c" in {r["label"] for r in state["scores"] if r["scale"] == "accuracy"}


@pytest.mark.parametrize(("lower", "sign"), [((), 1), (("latency",), -1)])
def test_a_metric_of_its_own_is_judged_in_its_direction(tmp_path, lower, sign):
  rng = np.random.default_rng(2)

  def values_of(e):
    return 50 + sign * 20.0 * (e.run.name == "moe_1") + rng.normal(size=60)

  state = with_metric(study(tmp_path, 0.0), "latency", values_of, lower)
  row = next(r for r in state["comparisons"] if (r["label"], r["arm"]) == ("c", "moe_1"))
  assert row["verdict"] == "MoE better" and row["scale"] == "latency"
  assert row["difference"] == pytest.approx(sign * 20, abs=1)
  assert row["simultaneous"][0] < row["difference"] < row["simultaneous"][1]
  score = next(r for r in state["scores"] if (r["label"], r["arm"]) == ("c", "moe_1"))
  assert score["interval"][0] < score["score"] < score["interval"][1]
  assert score["score"] == pytest.approx(50 + sign * 20, abs=1)
