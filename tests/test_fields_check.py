"""Every field of every config has a row, and every wrong value is refused in one line, first."""

import dataclasses
import json
import math
import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity import cli, defaults
from moe_parity import config as configs
from moe_parity.data import prepare
from moe_parity.errors import UserError
from moe_parity.evaluation import ablations
from moe_parity.fields.check import check_fields, row_of
from moe_parity.fields.kinds import Choice, Number, Several, Switch, Text, Whole
from moe_parity.fields.table import FIELDS, ROWS, SECTIONS
from moe_parity.planning.budget import ArmSpec, Budget
from moe_parity.planning.plan import make_plan
from moe_parity.study.comparisons import Results, plan_comparisons
from moe_parity.training.load_run import evaluate_run, read_config

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.name != "paper.py")
ODD = (None, True, "7", b"7", [], {}, (), float("nan"), float("inf"), -float("inf"), 1 + 2j)
SURROGATE = "a\ud83db"


def plain(config):
  """Nested dictionaries whose leaves keep their Python types."""
  return config.to_dict() if hasattr(config, "to_dict") else config


def whole_config():
  config = configs.load(str(ROOT / "configs/demo.py:tiny"))
  return plain(config)


def leaves(value, path=""):
  """(dotted path, value) of every field; tuples are values."""
  if not isinstance(value, dict):
    yield path, value
    return
  for name, inner in value.items():
    yield from leaves(inner, f"{path}.{name}" if path else name)


def put(config, path, value):
  """A deep copy of a nested dictionary with one field changed."""
  name, _, rest = path.partition(".")
  return config | {name: put(config[name], rest, value) if rest else value}


def wrong_values(kind):
  """A strategy of values that a kind's rule forbids, of every sort of wrong."""
  if isinstance(kind, Whole):
    allowed = kind.others
    below = st.integers(max_value=kind.least - 1).filter(lambda n: n not in allowed)
    above = st.integers(min_value=kind.most + 1)
    broken = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != int(x))
    return st.one_of(st.sampled_from(ODD), below, above, broken, st.just(float(kind.most) * 4))
  if isinstance(kind, Number):
    low = st.floats(max_value=math.nextafter(kind.least, -math.inf), allow_nan=False)
    high = st.floats(min_value=math.nextafter(kind.most, math.inf), allow_nan=False)
    ends = st.sampled_from((kind.least, kind.most)) if kind.open_ends else low
    found = st.one_of(st.sampled_from(ODD), low, high, ends, st.just(10**400))
    return found.filter(lambda x: not (type(x) is float and x in kind.others))
  if isinstance(kind, Switch):
    return st.one_of(st.integers(), st.text(), st.none(), st.just(1.0))
  if isinstance(kind, Choice):
    return st.one_of(
      st.text().filter(lambda t: t not in kind.values), st.integers(), st.none(), st.booleans()
    )
  if isinstance(kind, Several):
    item = wrong_values(kind.of).map(lambda value: (value,))
    return st.one_of(item, st.sampled_from((None, 3, "0,1", 1.5)))
  assert isinstance(kind, Text)
  odd = st.sampled_from((None, 3, True, b"x", ("a",), "a\nb", "a\0", SURROGATE, "\x1b[31m"))
  if kind.problem_of is None:
    return st.one_of(odd, st.just("x" * (kind.longest + 1)))
  return st.one_of(odd, st.text().filter(lambda text: kind.problem(text)))


def entries(config, folder):
  """What each command calls first, with the config: plan, train and study; evaluate."""
  stored = folder / "config.json"
  yield lambda: plan_comparisons(configs.ConfigDict(config, type_safe=False), Results(None))
  yield lambda: make_plan(config)
  try:
    stored.write_bytes(json.dumps(config, ensure_ascii=False).encode())
  except (TypeError, ValueError, UnicodeError):
    return  # no JSON file can hold it
  yield lambda: read_config(folder)


def path_in_demo(field):
  return field.path.replace("*", "moe_20")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.path)
def test_a_wrong_value_of_a_field_is_refused_in_one_line(field, tmp_path_factory):
  folder, demo = tmp_path_factory.mktemp("run"), whole_config()
  path = path_in_demo(field)

  @settings(max_examples=12, deadline=None, derandomize=True)
  @given(value=wrong_values(field.kind))
  def refused(value):
    config = put(demo, path, value)
    for entry in entries(config, folder):
      with pytest.raises(UserError) as caught:
        entry()
      text = str(caught.value)
      assert "\n" not in text and len(text) < 600
      # A number that is not finite is no JSON, and refused as the file is read.
      assert (f"{path}=" in text and "; give " in text) or f"damaged ({path}" in text, text

  refused()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_of_a_config_file_has_a_row(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  config = plain(configs.load(str(path)))
  found = {name for name, _ in leaves(config)}
  assert len(found) > 90
  assert [name for name in sorted(found) if row_of(name) is None] == []
  check_fields(config)


def test_every_row_is_a_field_with_a_default_in_range():
  config = plain(defaults.base())
  arm = {f"arms.*.{name}": value for name, value in defaults.moe_arm().items()}
  found = dict(leaves(config | {"arms": 0})) | arm
  assert found.keys() - {"arms"} == ROWS.keys() and len(ROWS) == len(FIELDS)
  required = {"budget.num_params"}
  for field in FIELDS:
    assert bool(field.kind.problem(field.default)) == (field.path in required), field.path
    assert field.about and field.about == " ".join(field.about.split())


def test_no_field_of_a_section_or_arm_is_read_without_a_row():
  for section, kind in (("budget", Budget), ("arms.*", ArmSpec)):
    names = {field.name for field in dataclasses.fields(kind)} - {"name"}
    assert names == {f.name for f in FIELDS if f.section == section}
  assert ROWS["evaluation.ablations"].default == ("routed_removed", "router_shuffled", "top_1")
  assert callable(ablations.ablated_scores)


@pytest.mark.parametrize("section", ["", *SECTIONS, "arms.moe_20"])
def test_a_key_that_no_section_has_is_refused_with_the_nearest(section):
  config = whole_config()
  name = {"": "sed", "arms.moe_20": "d_modle"}.get(section)
  name = name or next(f.name for f in FIELDS if f.section == section) + "s"
  config = put(config, f"{section}.{name}" if section else name, 1)
  with pytest.raises(UserError, match=rf"has no field '{name}'; did you mean '\w+'\?$"):
    check_fields(config)


@pytest.mark.parametrize("section", [None, 5, "text", [1], (2,), 0.5])
def test_a_section_that_has_no_fields_is_refused(section):
  with pytest.raises(UserError, match="is no section; give its fields by name"):
    check_fields({"budget": section})


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", "..", "a\nb", "<b>", "x" * 101, "-a"])
def test_an_arm_whose_name_is_no_folder_is_refused(name):
  config = whole_config()
  config["arms"] = {name: config["arms"]["dense"]}
  with pytest.raises(UserError, match="the name of an arm=.*; give letters"):
    make_plan(config)


def test_counts_may_be_written_as_whole_floats(monkeypatch):
  monkeypatch.chdir(ROOT)
  plan = make_plan(configs.load("configs/demo.py:tiny", ["--config.budget.dense_tokens=2.5e4"]))
  plain_plan = make_plan(
    configs.load("configs/demo.py:tiny", ["--config.budget.dense_tokens=25000"])
  )
  assert plan.to_dict() == plain_plan.to_dict()
  config = put(whole_config(), "budget.num_params", 1e5)
  assert make_plan(config).budget["num_params"] == 100_000
  for text in ("2.5", "nan", "inf", "1e400", "two", "", "True"):
    with pytest.raises(UserError, match="dense_tokens.*(; give a whole number|is not)"):
      make_plan(configs.load("configs/demo.py:tiny", [f"--config.budget.dense_tokens={text}"]))


@pytest.mark.parametrize(
  "override, words",
  [
    ("optimizer.clip_norm=-1", "optimizer.clip_norm=-1.0 is below"),
    ("optimizer.final_learning_rate=-0.02", "optimizer.final_learning_rate=-0.02 is below 0"),
    ("optimizer.epsilon=0", "optimizer.epsilon=0.0 is below 1e-30"),
    ("seed=99999999999999999999", "seed=99999999999999999999 is above 2^32 - 1"),
    ("seed=4294967296", "seed=4294967296 is above 2^32 - 1"),
    ("arms.dense.seeds=(9223372036854775808,)", "arms.dense.seeds=.* is above 2^32 - 1"),
    ("arms.dense.batch_sequences=1000000000000", "batch_sequences=1000000000000 is above 2^24"),
    ("train.micro_batch_sequences=-3", "train.micro_batch_sequences=-3 is below 0"),
    ("train.micro_batch_sequences=3", "does not divide the batch"),
    ("evaluation.mode=doc", "evaluation.mode='doc' is not known; give document"),
    ("evaluation.batch_sequences=0", "evaluation.batch_sequences=0 is below 1"),
    ("evaluation.stride=9", "evaluation.stride=9 is for mode='strided'"),
    ("evaluation.mode=strided", "evaluation.stride=0 with mode='strided'"),
    ("model.rope_base=500000", 'model.rope_base=500000 belongs to position="rope"'),
    ("model.norm_epsilon=0", "model.norm_epsilon=0.0 is below 1e-12"),
    ("evaluation.ablations=('top1',)", "did you mean 'top_1'"),
    ("data.held_out=hsah:0.1", "data.held_out='hsah:0.1'"),
    ("data.tokenizer=bpe:99", "data.tokenizer='bpe:99' is not between"),
    ("data.weights=a", "data.weights='a'"),
    ("data.max_epochs=nan", "data.max_epochs=nan is not finite"),
    ("budget.num_params=1e23", "budget.num_params=9+1611392 is above 10^14"),
  ],
)
@pytest.mark.parametrize("command", ["plan", "train", "study"])
def test_commands_refuse_before_any_text_is_read(
  command, override, words, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(prepare, "open_data", lambda *a: pytest.fail("text was read first"))
  arguments = [command, "--config=configs/demo.py:tiny", f"--config.{override}"]
  if command != "plan":
    arguments.append(f"--workdir={tmp_path / 'w'}")
  if command == "train":
    arguments.append("--arm=dense")
  assert cli.main(arguments) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert re.search(words.replace("^", r"\^"), error), error
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  "asked, words",
  [
    (("doc", 0, 0), "evaluation.mode='doc' is not known"),
    (("strided", 0, 0), "evaluation.stride=0 with mode='strided'"),
    (("strided", 65, 0), "does not lie in 1..64"),
    (("document", 5, 0), "evaluation.stride=5 is for mode='strided'"),
    (("document", 0, -5), "evaluation.max_tokens=-5 is below 0"),
  ],
)
def test_evaluate_refuses_before_it_loads_a_model(asked, words, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(whole_config()))
  plan = make_plan(whole_config()).arms[0].to_dict()
  (tmp_path / "plan.json").write_text(json.dumps(plan))
  with pytest.raises(UserError, match=re.escape(words)):
    evaluate_run(tmp_path, *asked)
