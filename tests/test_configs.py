"""Every config file loads and plans, with every command its docstring shows."""

import json
import pathlib
import re

import jax
import pytest

from moe_parity import config as configs
from moe_parity.errors import UserError
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.plan import make_plan
from moe_parity.study.comparisons import Results, plan_comparisons
from moe_parity.training.build import model_options

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.name != "paper.py")


def shown_arguments():
  """(file, text after the colon) of each --config= in the docstrings."""
  found = {(path, "") for path in FILES}
  for path in FILES:
    text = path.read_text()
    for name, arg in re.findall(r"--config=configs/(\w+\.py)(?::(\S+))?", text):
      found.add((ROOT / "configs" / name, arg))
  return sorted(found)


@pytest.mark.parametrize(
  "path, arg", shown_arguments(), ids=lambda value: getattr(value, "name", value)
)
def test_a_config_loads_and_its_arms_are_at_parity(path, arg, monkeypatch):
  monkeypatch.chdir(ROOT)
  config = configs.load(f"{path}:{arg}" if arg else str(path))
  planned = plan_comparisons(config, Results(None))
  known = set()
  for budget, arm in (
    (comparison.config.budget, arm) for comparison in planned for arm in comparison.plan.arms
  ):
    if arm.role not in ("reference", "control"):
      assert abs(arm.num_params / budget.num_params - 1) <= budget.params_tolerance
      assert abs(arm.residual_flops_pct) <= 100 * budget.flops_tolerance
    if arm.architecture in known:
      continue
    known.add(arm.architecture)
    _, params, _ = abstract_model(arm.architecture, model_options(config))
    built = sum(leaf.size for leaf in jax.tree.leaves(params))
    cost = cost_of(arm.architecture, arm.seq_len, "exact")
    assert built == cost.num_params + cost.vocabulary_params == arm.exact_num_params


PUBLISHED = sorted(
  path
  for study in ("depth", "depth_narrow", "depth_shapes")
  for path in ROOT.glob(f"results/{study}/*/plan.json")
)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_a_published_cell_is_what_its_config_plans(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  study, cell = path.parts[-3:-1]
  stored = {arm["name"]: arm for arm in json.loads(path.read_text())["arms"]}
  argument = "size={},tokens_per_param={}".format(*re.findall(r"\d+", cell))
  if study != "depth_shapes" and "moe_30" not in stored:
    argument += ",few=True"
  page = (ROOT / "docs/results/depth.md").read_text()
  overrides = re.findall(r"--config\.arms\.moe\.[\w=]+", page) if study == "depth_narrow" else []
  config = configs.load(f"configs/{study.removesuffix('_narrow')}.py:{argument}", overrides)
  planned = {
    arm.name: arm for part in plan_comparisons(config, Results(None)) for arm in part.plan.arms
  }
  same = set(planned) & set(stored)
  for name in same:
    assert planned[name].architecture == Architecture.from_dict(stored[name]["architecture"])
    assert planned[name].num_tokens == stored[name]["num_tokens"]
    assert planned[name].warmup_steps == stored[name]["warmup_steps"]
  own = {name for name, arm in stored.items() if arm["role"] == "arm" and "_lr" not in name}
  assert own <= same and len(own) > 3


def test_printed_rates_and_batches_are_the_papers():
  config = configs.load(str(ROOT / "configs/paper_7b.py:printed"))
  plan = {arm.name: arm for arm in make_plan(config).arms}
  assert plan["dense"].peak_learning_rate == 3.89e-4 and plan["dense"].batch_sequences == 432
  assert plan["moe_20"].peak_learning_rate == 4.74e-4 and plan["moe_20"].batch_sequences == 640


@pytest.mark.parametrize("name", ["paper_2b", "paper_3b", "paper_7b"])
def test_arms_of_the_paper_warm_up_as_its_table_4_says(name):
  for arm in make_plan(configs.load(str(ROOT / f"configs/{name}.py"))).arms:
    assert arm.warmup_steps == min(2000, max(200, round(0.01 * arm.num_steps)))


@pytest.mark.parametrize("arms, names", [
  ("moe_20", ["dense", "moe_20"]),
  ("dense_2c", ["dense", "dense_2c"]),
  ("dense", ["dense"]),
  ("moe", ["dense", "moe_11", "moe_13", "moe_16", "moe_20", "moe_26", "moe_53"]),
])  # fmt: skip
def test_arms_of_the_paper_come_with_the_dense_one_that_sets_c(arms, names):
  plan = make_plan(configs.load(str(ROOT / f"configs/paper_7b.py:arms={arms}")))
  assert [arm.name for arm in plan.arms] == names


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["configs/demo.py", "--config.model.dtpye=x"], r"key 'dtpye'; did you mean 'dtype'\?$"),
    (["configs/demo.py", "--config.model.xyz=1"], "^unknown config key 'xyz'; docs/config.md"),
    (["configs/demo.py", "--config.seed=two"], "config.seed=two"),
    (["configs/demo.py", "--config.seed"], "Missing value .*config.seed; give a whole number"),
    (
      ["configs/demo.py", "--config.budget"],
      "names no field; set one, for example --config.budget",
    ),
    (["configs/demo.py", "--config.budget=5"], "--config.budget=5 names no field"),
    (["configs/demo.py", "--config."], "names no field; set one, for example --config.seed=VALUE"),
    (["configs/demo.py", "--config.arms.moe_20"], "example --config.arms.moe_20.activation_rate"),
    (
      ["configs/demo.py", "--config.arms.moe_22.d_model=8"],
      "the config's arms are dense, .*did you mean 'moe_2",
    ),
    (["configs/demo.py", "--config.study.controls=maybe"], "maybe is not one; give True or False"),
    (["configs/demo.py", "--cofig.seed=2"], "unknown option"),
    (["configs/demo.py", "seed=2"], "unexpected argument 'seed=2'"),
    (["configs/demmo.py"], "no such file; did you mean 'configs/demo.py'"),
    (["configs/demo.py:tinny"], "'tinny' is not one of tiny, gpu; did you mean 'tiny'"),
    (["configs/demo.py:tiny=7"], "'7' is not true or false"),
    (["configs/paper_7b.py:activation_rate=x"], "'x' is not float"),
    (["configs/paper_7b.py:activation_rate=0.9"], "activation_rate=0.9 is none of the paper's"),
    (["configs/depth.py:size=50"], "size=50: the config knows 100, 200, 800; take"),
    (
      ["configs/depth.py:size=800,tokens_per_param=2"],
      "size=800: the config knows 100, 200, 400; take",
    ),
    (
      ["configs/depth_shapes.py:size=400,tokens_per_param=5"],
      "size=400: the config knows 100; take",
    ),
    (
      ["configs/depth_controls.py:tokens_per_param=9"],
      "tokens_per_param=9: the config knows 5, 20",
    ),
    (["configs/paper_7b.py:arms=mo"], "'mo' is not one of all, moe, dense, dense_2c, moe_11"),
  ],
)
def test_a_wrong_config_is_refused_in_one_line_with_a_way_out(arguments, words, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError, match=words) as caught:
    configs.load(arguments[0], arguments[1:])
  assert "\n" not in str(caught.value)


def test_overrides_reach_the_plan(monkeypatch):
  monkeypatch.chdir(ROOT)
  overrides = ["--config.arms.moe_40.num_layers=3", "--config.arms.dense.seeds=(1,2)"]
  plan = make_plan(configs.load("configs/demo.py:tiny", overrides))
  assert [(arm.name, arm.seed) for arm in plan.arms][:2] == [("dense", 1), ("dense", 2)]
  assert {arm.name: arm.architecture.num_layers for arm in plan.arms}["moe_40"] == 3


def test_what_changed_between_two_configs_is_named():
  old = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 0}
  new = {"a": 1, "b": {"c": 2, "d": 4}, "new": 1}
  assert configs.differences(old, new) == [
    "b.d: 3 -> 4", "gone: only in the old one", "new: only in the new one",
  ]  # fmt: skip


def test_configs_that_come_along_are_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert configs.load("configs/demo.py:tiny").name == "demo"
  monkeypatch.setattr(configs, "__file__", str(tmp_path / "site" / "moe_parity" / "config.py"))
  (tmp_path / "data" / "share" / "moe_parity").mkdir(parents=True)
  (tmp_path / "data" / "share" / "moe_parity" / "configs").symlink_to(ROOT / "configs")
  monkeypatch.setattr(configs.sysconfig, "get_path", lambda name: str(tmp_path / name))
  assert configs.load("configs/demo.py:tiny").name == "demo"  # as a wheel installs them
  with pytest.raises(UserError, match="no such file"):
    configs.load("configs/dem.py")
