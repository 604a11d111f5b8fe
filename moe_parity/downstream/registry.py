"""The paper's 29 benchmarks: category, metric, shots, where the data come from, and which are here.

`benchmarks.csv` has a row for each, in the paper's two groups: 13 of pretrained (Appendix D) and 16
of fine-tuned models (Table 2), with the paper's categories. BBH and DROP are in both groups. The
paper states neither metric nor shots; those are what is usual for a benchmark. Where one cannot be
had without a network, its row says why; a report lists it with that reason. `tasks` are names of
`catalog`, `lm_eval` those of lm-eval, for who has a network.
"""

import csv
import dataclasses
import functools
from importlib import resources

from moe_parity.downstream.tasks import BenchmarkTask

CATEGORIES = ("knowledge", "reasoning", "comprehensive", "math", "code")
GROUPS = ("PT", "SFT")  # pretrained, fine-tuned


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A row of benchmarks.csv. `tasks` is empty exactly where `reason` says why it is not here;
  `evidence` says where the paper names it."""

  name: str
  group: str
  category: str
  metric: str
  shots: str
  source: str
  tasks: tuple[str, ...]
  lm_eval: tuple[str, ...]
  reason: str
  evidence: str


@functools.cache
def benchmarks() -> tuple[Benchmark, ...]:
  """All rows, in the file's order."""
  text = (resources.files(__package__) / "benchmarks.csv").read_text("utf-8")
  rows = csv.DictReader(text.splitlines())
  names = ("tasks", "lm_eval")
  return tuple(
    Benchmark(**row | {name: tuple(row[name].split()) for name in names}) for row in rows
  )


# Categories of tasks that are none of the paper's 29, by how their names begin.
OTHERS = {
  **dict.fromkeys(("gsm8k", "minerva_math", "basic_skills_arithmetic"), "math"),
  **dict.fromkeys(("codex_mbpp", "mt_mbpp", "basic_skills_coding"), "code"),
  **dict.fromkeys(("triviaqa", "naturalqs", "jeopardy", "openbookqa", "med"), "knowledge"),
  **dict.fromkeys(("csqa", "basic_skills_logical_reasoning"), "reasoning"),
}


def labeled(task: BenchmarkTask) -> BenchmarkTask:
  """The task with the category and name of its benchmark, where the registry knows it; of Table 2
  for one that is in both groups."""
  for row in reversed(benchmarks()):
    if task.name in row.tasks or task.name in row.lm_eval:
      return dataclasses.replace(task, category=row.category, benchmark=row.name)
  for begin, category in OTHERS.items():
    if task.name.startswith(begin):
      return dataclasses.replace(task, category=category)
  return task


def of_lm_eval(name: str) -> Benchmark | None:
  """The benchmark of one of lm-eval's tasks, or of the group that its name begins with; of Table 2
  for one that is in both groups."""
  known = [
    (len(group), row)
    for row in reversed(benchmarks())
    for group in row.lm_eval
    if f"{name}_".startswith(f"{group}_")
  ]
  return max(known, key=lambda pair: pair[0], default=(0, None))[1]


SUITES = {
  # Choices by likelihood and gold answers in bits per byte: what a small model can show.
  "small": (
    *("arc_easy_rc_0shot", "arc_challenge_rc_0shot", "hellaswag_rc_5shot", "piqa_rc_0shot"),
    *("winogrande_rc_0shot", "socialiqa_rc_0shot", "boolq_rc_0shot", "sciq_rc_0shot"),
    *("openbookqa_rc_0shot", "csqa_rc_0shot", "mmlu_rc_0shot"),
    *("gsm8k_gold_bpb_5shot", "codex_humaneval_gold_bpb_0shot", "codex_mbpp_gold_bpb_0shot"),
    *("nq_open_bpb_0shot", "triviaqa_bpb_0shot", "squad_bpb_5shot"),
  ),
  # OLMES as it is: five examples before each question, whole splits.
  "olmes": (
    *("arc_easy_test_rc_5shot", "arc_challenge_test_rc_5shot", "hellaswag_val_rc_5shot"),
    *("piqa_val_rc_5shot", "winogrande_val_rc_5shot", "socialiqa_val_rc_5shot"),
    *("boolq_val_rc_5shot", "openbookqa_test_rc_5shot", "csqa_val_rc_5shot", "mmlu_rc_5shot"),
  ),
  # Answers that are written, without running any program.
  "generate": (
    *("gsm8k_generate_5shot", "naturalqs_open_generate_5shot", "triviaqa_generate_0shot"),
    *("squad_generate_5shot",),
  ),
  # Programs that are run: needs --run-code.
  "code": ("codex_humaneval_generate_0shot", "codex_mbpp_generate_0shot"),
}
SUITES["paper"] = tuple(
  dict.fromkeys(
    task
    for row in benchmarks()
    for task in row.tasks
    if not (task.startswith("codex") and "generate" in task)
  )
)
