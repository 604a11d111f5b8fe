"""What data runs see, proved from what they leave: the real loop, loader, ledger and audit around a
train step that computes nothing."""

import collections
import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity import config
from moe_parity.data.audit import audit_run, compare_runs
from moe_parity.data.ledger import BudgetOverrun
from moe_parity.data.loader import Loader
from moe_parity.data.mixture import planner_inputs
from moe_parity.data.prepare import prepare
from moe_parity.errors import UserError
from moe_parity.planning.plan import make_plan
from moe_parity.training import loop, setup, stage
from moe_parity.training.step import TrainState, TrainStep

ROOT = pathlib.Path(__file__).resolve().parent.parent
S = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("MOE_PARITY_CACHE", str(tmp_path_factory.mktemp("cache")))
    return prepare()


class Step(TrainStep):
  """Stands in for the compiled step; `stop_after` steps it is interrupted like by Ctrl-C."""

  def __init__(self):
    self.rows, self.stop_after = [], None

  def compile(self, *shapes):
    return self

  def __call__(self, state, inputs, targets):
    if self.stop_after is not None and int(state.step) >= self.stop_after:
      raise KeyboardInterrupt
    self.rows.append(np.asarray(inputs))
    names = ("loss", "cross_entropy", "gradient_norm", "learning_rate")
    return state._replace(step=state.step + 1), dict.fromkeys(names, jnp.float32(1.0))


@pytest.fixture
def step(monkeypatch):
  made = Step()
  zeros = {"w": jnp.zeros(2)}
  tiny = TrainState(jnp.zeros((), jnp.int32), zeros, zeros, zeros)
  monkeypatch.setattr(setup, "make_train_step", lambda *options: made)
  monkeypatch.setattr(stage, "init_state", lambda *options: tiny)
  for name in ("abstract_state", "checkpoint_state"):
    monkeypatch.setattr(setup, name, lambda *options: tiny)
  monkeypatch.setattr(setup, "measure_peak_flops", lambda dtype: 1e12)
  score = lambda inputs, targets, mask: np.ones(inputs.shape)  # noqa: E731
  monkeypatch.setattr(setup, "make_scorer", lambda *options: lambda *weights: score)
  monkeypatch.setattr(loop, "take_apart", lambda run, state: {})  # needs a real model
  return made


def planned(store, *overrides):
  """The config, and its dense arm and one of its MoE arms: batches of other sizes."""
  loaded = config.load(
    f"{ROOT}/configs/demo.py:tiny",
    [
      "--config.budget.dense_tokens=9600",
      "--config.evaluation.max_tokens=500",
      "--config.evaluation.routing_tokens=0",
      *overrides,
    ],  # fmt: skip
  )
  plan = make_plan(loaded, **planner_inputs(store, loaded))
  arms = {arm.name: arm for arm in plan.arms}
  return loaded, plan, arms["dense"], arms["moe_20"]


def train(loaded, arm, store, folder):
  loop.train_arm(loaded, arm, store, folder)
  return folder


@pytest.mark.parametrize(
  "overrides, dense_epochs, moe_epochs",
  [
    (["--config.budget.reuse=unique"], 1, 1),
    (["--config.budget.reuse=strict"], 1, None),  # None: tokens / D^
    (["--config.budget.reuse=loose"], 1, 2),
    (["--config.budget.reuse=epochs", "--config.budget.epochs=1.5"], 1.5, 1.5),
  ],
)
def test_every_reuse_scheme_gives_the_epochs_it_plans(
  overrides, dense_epochs, moe_epochs, store, step, tmp_path
):
  loaded, plan, dense, moe = planned(store, *overrides)
  assert dense.batch_sequences != moe.batch_sequences
  for arm, epochs in ((dense, dense_epochs), (moe, moe_epochs)):
    found = audit_run(train(loaded, arm, store, tmp_path / arm.name))
    assert found["passed"]
    assert found["num_tokens"] == arm.num_tokens
    assert found["num_unique_tokens"] == arm.num_unique_tokens
    assert found["epochs"] == pytest.approx(arm.epochs)
    wanted = arm.num_tokens / dense.num_tokens if epochs is None else epochs
    # A scheme of epochs is met to within a window of the unique tokens.
    assert found["epochs"] == pytest.approx(wanted, rel=S / arm.num_unique_tokens)
  both = compare_runs(tmp_path / "dense", tmp_path / "moe_20")
  strict = loaded.budget.reuse == "strict"
  assert plan.budget["equal_data"] == both["same_windows"] == strict
  assert any("only N and C are equal" in note for note in plan.notes) != strict
  # The smaller budget is a prefix of the larger in one order, so its windows are among the others.
  assert both["windows_only_in_a"] == 0
  shared = min(dense.num_unique_tokens, moe.num_unique_tokens) // S
  assert both["first_difference"] is None or both["first_difference"] >= shared


def test_a_mixture_is_read_as_planned_by_arms_of_other_batches(store, step, tmp_path):
  domains = store.train.documents.domains
  weights = ",".join(f"{name}={weight}" for weight, name in enumerate(domains, 1))
  loaded, plan, dense, moe = planned(store, f"--config.data.weights={weights}")
  assert plan.budget["equal_data"]
  for arm in (dense, moe):
    found = audit_run(train(loaded, arm, store, tmp_path / arm.name))
    assert found["passed"] and found["num_unique_tokens"] == arm.num_unique_tokens
    in_windows = found["ledger"]["by_domain"]
    for name, entry in arm.mixture.items():
      assert entry["num_unique_tokens"] == dense.mixture[name]["num_unique_tokens"]
      assert entry["num_tokens"] == in_windows[name]["num_tokens"]
      # Token by token it is nearly the same: a window may end in the next document's domain.
      assert found["by_domain"][name]["num_tokens"] == pytest.approx(entry["num_tokens"], rel=0.1)
    assert (
      sum(entry["share"] for entry in arm.mixture.values()) == len(domains) * (len(domains) + 1) / 2
    )
  both = compare_runs(tmp_path / "dense", tmp_path / "moe_20")
  assert both["same_windows"] and both["same_order"]


def test_a_run_interrupted_twice_saw_what_one_that_was_not_saw(store, step, tmp_path):
  loaded, _, dense, moe = planned(store, "--config.train.save_every=19")
  train(loaded, moe, store, tmp_path / "whole")
  whole = collections.Counter(row.tobytes() for rows in step.rows for row in rows)
  step.rows = []
  for step.stop_after in (23, 41, None):
    try:
      train(loaded, moe, store, tmp_path / "resumed")
    except KeyboardInterrupt:
      assert not (tmp_path / "resumed" / "ledger.npz").exists()
  assert audit_run(tmp_path / "resumed")["passed"]
  both = compare_runs(tmp_path / "whole", tmp_path / "resumed")
  assert both["same_order"] and both["same_windows"]
  assert both["a"] == both["b"] and both["rows_compared"] == moe.num_tokens // S
  # Steps after the last checkpoint were made again; everything else was given to the step once.
  again = collections.Counter(row.tobytes() for rows in step.rows for row in rows) - whole
  assert sum(again.values()) == ((23 - 19) + (41 - 38)) * moe.batch_sequences
  train(loaded, dense, store, tmp_path / "dense")
  both = compare_runs(tmp_path / "dense", tmp_path / "resumed")
  assert both["same_order"] and both["rows_compared"] == dense.num_tokens // S


def test_a_step_over_the_token_budget_is_refused(store, step, tmp_path):
  loaded, _, dense, _ = planned(store)
  wrong = dataclasses.replace(dense, num_steps=dense.num_steps + 3)
  with pytest.raises(BudgetOverrun, match=f"the plan allows {dense.num_tokens}"):
    train(loaded, wrong, store, tmp_path / "run")
  assert len(step.rows) == dense.num_steps
  assert not (tmp_path / "run" / "result.json").exists()


def test_a_window_over_the_unique_budget_is_refused(store, step, tmp_path, monkeypatch):
  loaded, _, dense, _ = planned(store)

  class Wandering(Loader):
    def batch(self, row):
      found = super().batch(row)
      if row == 3 * self.batch_sequences:
        found["window"][0] = np.setdiff1d(np.arange(5000), self.windows(0, 5000))[0]
      return found

  monkeypatch.setattr(stage, "Loader", Wandering)
  with pytest.raises(BudgetOverrun, match="unique tokens seen, the plan allows") as caught:
    # The whole budget but one window was read before: an epoch later the stray one is too much.
    wrong = dataclasses.replace(dense, num_unique_tokens=3 * dense.batch_sequences * S)
    train(loaded, wrong, store, tmp_path / "run")
  assert len(step.rows) == 3 and "order of the data" in str(caught.value)


def test_a_domain_that_repeats_too_often_is_refused_in_planning(store):
  domains = store.train.documents.domains
  rest = ",".join(f"{name}=0" for name in domains[1:])
  overrides = [f"--config.data.weights={domains[0]}=1,{rest}", "--config.data.max_epochs=1.5"]
  with pytest.raises(UserError, match=f"'moe_20' would read {domains[0]!r} [2-9].*max_epochs=1.5"):
    planned(store, *overrides)
  with pytest.raises(UserError, match="arm 'moe_20' would read 'the corpus' .*max_epochs=1.5"):
    planned(store, overrides[1])
  with pytest.raises(UserError, match="data.weights names poems; the store has the domains"):
    planned(store, "--config.data.weights=poems=1")
