"""lm-eval's own numbers on local tasks, against sums by hand over a full forward pass."""

import json
import math
import pathlib
import re
import shutil
import types

import numpy as np
import pytest

from moe_parity import cli
from moe_parity.data.chat_template import template_for
from moe_parity.data.tokenizer import byte_tokenizer
from moe_parity.downstream import catalog, likelihood, lm_eval_tasks
from moe_parity.downstream.examinee import Examinee, Settings
from moe_parity.errors import UserError
from tests.helpers.full_pass import log_probabilities

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'moe_parity[eval]'")
pytestmark = [
  pytest.mark.filterwarnings("ignore::DeprecationWarning"),
  pytest.mark.filterwarnings("ignore::FutureWarning"),
  pytest.mark.filterwarnings("ignore::UserWarning"),
]

from moe_parity.downstream import lm_eval_model  # noqa: E402 - needs lm-eval
from moe_parity.downstream.lm_eval_model import LmEvalModel  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = [
  {"question": "Which one flies?", "choices": ["a stone", "a sparrow", "an oak"], "gold": 1},
  {"question": "Which one swims?", "choices": ["herring", "hat"], "gold": 0},
  {"question": "What do bakers bake?", "choices": ["iron", "bread", "clouds", "é"], "gold": 1},
]
TASKS = {
  "zoo_choices": """output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
  "zoo_rolling": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{choices | join(' ')}}"
metric_list: [{metric: bits_per_byte}]
""",
  "zoo_last_word": """output_type: loglikelihood
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: " {{choices[gold]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
  "zoo_written": """output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
WINDOW = 48


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lm_eval") / "run"
  few = ["--config.budget.dense_tokens=10000"]
  config = f"--config={ROOT}/configs/demo.py:tiny"
  assert cli.main(["train", config, "--arm=moe_20", f"--workdir={folder}", *few]) == 0
  return folder


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
  folder = tmp_path_factory.mktemp("yaml")
  data = folder / "zoo.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  for name, text in TASKS.items():
    head = f"task: {name}\ndataset_path: json\ntest_split: test\n"
    head += f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
    (folder / f"{name}.yaml").write_text(head + text)
  return folder


@pytest.fixture(scope="module")
def nll(run):
  """ids -> nats of each but the first, from the logits of all at once, float64 from there on."""
  of_text = log_probabilities(Examinee(run, Settings(context=WINDOW)), WINDOW)

  def nats(ids):
    return -of_text(ids)[np.arange(len(ids) - 1), ids[1:]]

  return nats


def encoded(text):
  return [16 + byte for byte in text.encode()]  # the byte tokenizer's layout


def result(run, yaml, name, capsys, *options):
  command = ["downstream", str(run), f"--include-path={yaml}", f"--tasks={name}", "--json"]
  assert cli.main([*command, f"--context={WINDOW}", *options]) == 0
  return json.loads(capsys.readouterr().out)[0]


def test_choices_agree_with_sums_by_hand(run, yaml, nll, capsys):
  found = result(run, yaml, "zoo_choices", capsys)
  plain, normed, bits = [], [], []
  for row in ROWS:
    nats = []
    for choice in row["choices"]:
      context = [0, *encoded(f"Question: {row['question']}\nAnswer:")]
      ids = np.array([*context, *encoded(f" {choice}")])[-WINDOW - 1 :]
      nats.append(nll(ids)[-len(encoded(f" {choice}")) :].sum())
    nats = np.array(nats)
    plain.append(np.argmin(nats) == row["gold"])
    normed.append(np.argmin(nats / [len(choice) for choice in row["choices"]]) == row["gold"])
    bits.append(nats[row["gold"]] / math.log(2) / len(f" {row['choices'][row['gold']]}".encode()))
  assert found["lm_eval"]["acc,none"] == pytest.approx(np.mean(plain), abs=1e-6)
  assert found["lm_eval"]["acc_norm,none"] == pytest.approx(np.mean(normed), abs=1e-6)
  assert found["scores"]["acc"]["value"] == pytest.approx(np.mean(plain), abs=1e-6)
  assert found["scores"]["acc"]["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
  assert found["scores"]["bits_per_byte"]["value"] == pytest.approx(np.mean(bits), rel=1e-6)


def test_rolling_bits_per_byte_agree_with_sums_by_hand(run, yaml, nll, capsys):
  """Disjoint windows; the last one is filled from behind, as lm-eval cuts them."""
  found = result(run, yaml, "zoo_rolling", capsys)
  nats, size = 0.0, 0
  for row in ROWS:
    text = f"{row['question']} {' '.join(row['choices'])}"
    ids, size = np.array([0, *encoded(text)]), size + len(text.encode())
    first = ids[: WINDOW + 1]
    nats += nll(first).sum()
    if len(ids) > WINDOW + 1:
      nats += nll(ids[-WINDOW - 1 :])[-(len(ids) - WINDOW - 1) :].sum()
  wanted = nats / math.log(2) / size
  assert found["lm_eval"]["bits_per_byte,none"] == pytest.approx(wanted, rel=1e-6)
  score = found["scores"]["bits_per_byte"]
  assert score["value"] == pytest.approx(wanted, rel=1e-6)
  assert score["interval"][0] < score["value"] < score["interval"][1]


def test_a_perplexity_is_shown_and_bits_per_byte_too(run, yaml, nll, capsys):
  """lm-eval has nats of an item under that name, and the exponential of their mean as its score."""
  found = result(run, yaml, "zoo_last_word", capsys)
  bits, nats = [], []
  for row in ROWS:
    answer = f" {row['choices'][row['gold']]}"
    ids = np.array([0, *encoded(f"Question: {row['question']}\nAnswer:{answer}")])[-WINDOW - 1 :]
    nats.append(nll(ids)[-len(encoded(answer)) :].sum())
    bits.append(nats[-1] / math.log(2) / len(answer.encode()))
  assert found["lm_eval"]["perplexity,none"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-6)
  assert found["metric"] == "acc"
  shown = found["scores"]["perplexity"]
  assert shown["value"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-6)
  assert not shown["higher_is_better"] and shown["chance"] is None
  assert shown["interval"][0] < shown["value"] < shown["interval"][1]
  score = found["scores"]["bits_per_byte"]
  assert score["value"] == pytest.approx(np.mean(bits), rel=1e-6)
  assert not score["higher_is_better"] and found["scores"]["acc"]["higher_is_better"]


def test_an_answer_that_is_begun_for_the_model_is_not_ended():
  """lm-eval's gen_prefix: the model goes on in the turn of the assistant that its prompt begins."""
  model = LmEvalModel.__new__(LmEvalModel)
  model._template = template = template_for(byte_tokenizer())
  chat = [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": "It is"}]
  begun = model.apply_chat_template(chat, add_generation_prompt=False)
  assert begun == f"{template.begin}{template.user}Sum?{template.assistant}It is"
  assert model.apply_chat_template(chat[:1]).endswith(f"Sum?{template.assistant}")
  assert model.apply_chat_template(chat).endswith(f"{template.end}{template.assistant}")


def test_written_answers_end_at_a_stop_and_are_judged(run, yaml, capsys):
  found = result(run, yaml, "zoo_written", capsys)
  assert found["lm_eval"]["exact_match,none"] == found["scores"]["exact_match"]["value"]
  assert found["kind"] == "generate_until" and found["num_items"] == 3


class Request:
  """A request of lm-eval for text."""

  def __init__(self, **options):
    self.args = "Question: Which one flies?\nAnswer:", options


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_a_text_is_as_long_as_any_of_lm_evals_names_says(run, monkeypatch, name):
  asked = []
  monkeypatch.setattr(lm_eval_model, "continued", lambda *args: asked.extend(args[2]) or ([], ROWS))
  model = LmEvalModel(Examinee(run, Settings(context=WINDOW)))
  monkeypatch.setattr(model, "_count", lambda num_cut: None)
  model.generate_until([Request(until=[]), Request(until=[], **{name: 3})])
  assert asked == [256, 3]


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"do_sample": True}, "asks for sampled text (temperature=1)"),
    ({"temperature": 0.7}, "asks for sampled text (temperature=0.7)"),
    ({"num_beams": 4}, "have num_beams=4, which greedy text"),
    ({"repetition_penalty": 1.3}, "have repetition_penalty=1.3, which greedy text"),
    ({"max_gen_toks": 0}, "have max_gen_toks=0, which is no number of tokens"),
  ],
)
def test_options_that_greedy_text_cannot_follow_are_refused(options, words):
  model = LmEvalModel.__new__(LmEvalModel)
  model._tokenizer, model._template = byte_tokenizer(), None
  with pytest.raises(UserError, match=re.escape(words)):
    model.generate_until([Request(until=[], **options)])


def test_options_that_change_no_greedy_text_are_taken(run):
  model = LmEvalModel(Examinee(run, Settings(context=WINDOW)))
  kwargs = {"do_sample": False, "temperature": 0.8, "top_p": 0.9, "num_beams": 1, "max_tokens": 2}
  assert len(model.generate_until([Request(until="never", **kwargs)])) == 1


def test_a_limit_takes_the_same_items_and_another_key(run, yaml, capsys):
  whole = result(run, yaml, "zoo_choices", capsys)
  part = result(run, yaml, "zoo_choices", capsys, "--limit=2")
  assert (part["num_items"], whole["num_items"]) == (2, 3)
  assert part["values"] != whole["values"]


@pytest.mark.parametrize("num_shots", [None, 1])
def test_a_task_stays_as_it_was_for_the_next_run(run, yaml, tmp_path, num_shots):
  """lm-eval writes its number of examples into a task: the next run's result had another key, and
  a study's first arm was compared with none of the others."""
  text = "fewshot_split: test\n" + (yaml / "zoo_choices.yaml").read_text()
  (tmp_path / "zoo_shots.yaml").write_text(text.replace("zoo_choices", "zoo_shots"))
  (task,) = lm_eval_tasks.load("zoo_shots", (str(tmp_path),))
  before, keys = lm_eval_tasks.identity(task), []
  for name in ("one", "other"):
    shutil.copytree(run, tmp_path / name)
    examinee = Examinee(tmp_path / name, Settings(context=WINDOW))
    found = lm_eval_tasks.examine(examinee, task, num_shots)
    assert found["num_shots"] == (num_shots or 0)
    keys.append(found["key"])
  assert keys[0] == keys[1]
  assert lm_eval_tasks.identity(task) == before


def test_a_missing_folder_of_tasks_is_named(run, capsys):
  assert cli.main(["downstream", str(run), "--include-path=nowhere", "--tasks=zoo_choices"]) == 2
  assert "--include-path=nowhere is no folder" in capsys.readouterr().err


def test_data_that_cannot_be_had_is_one_line(run, yaml, tmp_path, capsys):
  text = (yaml / "zoo_choices.yaml").read_text().replace("zoo.jsonl", "gone.jsonl")
  (tmp_path / "gone.yaml").write_text(text.replace("zoo_choices", "zoo_gone"))
  command = ["downstream", str(run), f"--include-path={tmp_path}", "--tasks=zoo_gone"]
  assert cli.main(command) == 2
  error = capsys.readouterr().err
  assert "--tasks=zoo_gone: lm-eval cannot load it" in error.splitlines()[-1]


def test_what_decides_prompts_and_answers_is_in_the_key(tmp_path):
  """Examples of another file, and a function that the task's own function calls."""
  rows = "".join(json.dumps(row) + "\n" for row in ROWS)
  code = "def known(row): return {0}\ndef target(row): return known(row)\n"
  (tmp_path / "asked.jsonl").write_text(rows)
  (tmp_path / "mine.yaml").write_text(f"""task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/asked.jsonl, train: {tmp_path}/shown.jsonl}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: !function helper.target
metric_list: [{{metric: acc}}]
""")
  found = []
  for shown, gold in ((rows, 0), (rows[: len(rows) // 2].rpartition("\n")[0], 0), (rows, 1)):
    (tmp_path / "shown.jsonl").write_text(shown)
    (tmp_path / "helper.py").write_text(code.format(gold))
    (task,) = lm_eval_tasks.load("mine", (str(tmp_path),))
    found.append([lm_eval_tasks.identity(task, shots) for shots in (0, 2)])
  (none, two), (none_shown, two_shown), (none_code, two_code) = found
  assert none == none_shown  # without examples in the prompts they decide nothing
  assert len({none, two, two_shown, none_code, two_code}) == 5


@pytest.mark.parametrize(
  ("text", "target", "wanted"),
  [
    ("Who flies?", 1, "Who flies? a bird"),
    ("Who flies?", [1, 2], "Who flies? a bird a bee"),
    ("Who flies?", "a bird", "Who flies? a bird"),
    (2, "flies", "a bee flies"),  # a context of each choice, as Winogrande has them
  ],
)
def test_what_is_looked_for_is_the_question_and_its_answer(text, target, wanted):
  """And not the number of either."""
  task = types.SimpleNamespace(OUTPUT_TYPE="multiple_choice", eval_docs=[{}, {}])
  task.doc_to_text, task.doc_to_target = lambda doc: text, lambda doc: target
  task.doc_to_choice = lambda doc: ["a stone", "a bird", "a bee"]
  assert lm_eval_tasks.questions(task, ["1"]) == [wanted]


def test_lm_evals_index_is_made_once_for_all_names(tmp_path, monkeypatch):
  """Of its 15,000 files, which takes many seconds."""
  made = []

  class Index:
    def __init__(self, include_path, include_defaults):
      made.append(include_defaults)
      self.all_tasks = ["mine", "hellaswag", "piqa"] if include_defaults else ["mine"]

  monkeypatch.setattr("lm_eval.tasks.TaskManager", Index)
  own = (str(tmp_path),)
  for names in (["mine"], ["hellaswag"], ["piqa"], ["mine", "piqa"]):
    assert set(names) <= set(lm_eval_tasks.manager(own, frozenset(names)).all_tasks)
  assert made == [False, True]


def test_a_task_file_that_lm_eval_skips_is_named(tmp_path):
  """It has the task that is asked for, and lm-eval says nothing of it."""
  (tmp_path / "a.yaml").write_text("task: mine\nmetric_list: [{metric: acc\n")
  (tmp_path / "b.yml").write_text("task: other\n")
  (tmp_path / "part.yaml").write_text("output_type: generate_until\n")  # for others to include
  with pytest.raises(UserError) as error:
    catalog.sort_names(["mine"], {}, (str(tmp_path),))
  words = str(error.value)
  assert f"{tmp_path}/a.yaml was not read: while parsing a flow" in words
  assert f"{tmp_path}/b.yml was not read: lm-eval reads .yaml files" in words
  assert "part.yaml" not in words


class Asking(Examinee):
  """What `_evaluate` reads of an examinee."""

  def __init__(self):
    self.template, self.settings = None, Settings()


def failing(monkeypatch, fail):
  import lm_eval

  monkeypatch.setattr(lm_eval, "simple_evaluate", lambda **given: fail())
  lm_eval_tasks._evaluate(None, None, "mine", None, None, Asking())


def test_a_task_whose_code_fails_is_one_line(monkeypatch):
  """An error below our own code is ours, and comes as it is."""
  with pytest.raises(UserError, match=r"mine: the task itself fails \(KeyError: 'gold', in test_"):
    failing(monkeypatch, lambda: {}["gold"])
  with pytest.raises(AttributeError):
    failing(monkeypatch, lambda: likelihood.Likelihood.score(None, []))
