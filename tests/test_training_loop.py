"""One small arm through the loop: what it leaves, and what stops it."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from moe_parity import cli, config
from moe_parity.data.prepare import prepare
from moe_parity.errors import NotFiniteError, UserError
from moe_parity.planning.plan import make_plan
from moe_parity.stored.study_files import NOT_FINITE
from moe_parity.training import setup
from moe_parity.training.loop import train_arm
from moe_parity.training.step import TrainStep, make_train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = ["--config.budget.dense_tokens=5120", "--config.evaluation.max_tokens=2000"]


def arm(name, *overrides):
  loaded = config.load(f"{ROOT}/configs/demo.py:tiny", [*SMALL, *overrides])
  return loaded, {arm.name: arm for arm in make_plan(loaded, vocab_size=272).arms}[name]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("MOE_PARITY_CACHE", str(tmp_path_factory.mktemp("cache")))
    return prepare()


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / "dense"
  loaded, plan = arm("dense", "--config.train.save_every=10", "--config.train.eval_every=15")
  train_arm(loaded, plan, store, folder)
  return folder


def test_metrics_are_complete_and_tokens_add_up(run):
  plan = json.loads((run / "plan.json").read_text())
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  train = [line for line in lines if line["kind"] == "train"]
  assert train[0]["step"] == 1 and train[-1]["step"] == plan["num_steps"]
  assert train[-1]["num_tokens"] == plan["num_tokens"]
  assert all(line["step"] % 15 == 0 for line in lines if line["kind"] == "validation")
  assert train[-1]["cross_entropy"] < train[0]["cross_entropy"]
  for line in train:
    assert line["tokens_per_second"] > 0 and 0 < line["peak_share"] < 2
    assert line["learning_rate"] <= plan["peak_learning_rate"] * (1 + 1e-6)
  assert list((run / "tensorboard").iterdir())


def test_an_moe_run_says_what_it_owes_to_its_routed_experts(store, tmp_path):
  """And that an arm's own gates are trained when the arm is trained alone."""
  own = "--config.arms.moe_20.gates=normalized", "--config.arms.moe_20.experts_per_token=2"
  result = train_arm(*arm("moe_20", *own), store, tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  assert config["model"]["normalize_gates"] is True
  assert result["ablations"].keys() == {"routed_removed", "router_shuffled", "top_1"}
  for scores in result["ablations"].values():
    assert 0 < scores["bpc"] != result["validation"]["bpc"]
  layers = result["layers"]
  assert {len(values) for values in layers.values()} == {1} and layers["routed_rms"][0] > 0
  assert layers["gate_sum"] == pytest.approx([1.0], abs=1e-6)  # normalized
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert lines[0]["gate_sum"] == pytest.approx([1.0], abs=1e-6)


def _steps(run):
  return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_damaged_newest_checkpoint_is_passed_over(run, store):
  result = json.loads((run / "result.json").read_text())
  steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
  assert len(steps) == 2
  newest = run / "checkpoints" / str(steps[-1])
  broken = [p for p in (newest / "model").rglob("*") if p.is_file() and p.parent.name == "d"]
  assert broken
  for part in broken:
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
  (run / "result.json").unlink()
  warnings, logged = [], _steps(run)
  loaded, plan = arm("dense", "--config.train.save_every=10", "--config.train.eval_every=15")
  again = train_arm(loaded, plan, store, run, warn=warnings.append)
  assert len(warnings) == 1 and f"checkpoint of step {steps[-1]}" in warnings[0]
  assert f"resuming from step {steps[0]}" in warnings[0]
  timed = {"seconds", "compile_seconds", "step_seconds", "machine", "power"}
  for field in result.keys() - timed - {"content_sha256"}:  # train_cross_entropy too
    assert again[field] == result[field]
  assert _steps(run) == logged  # at e810754 with another line at the first step
  assert (run / "checkpoints" / f"damaged-{steps[-1]}").exists()


def test_a_loss_that_is_no_number_stops_with_its_step(store, tmp_path):
  loaded, plan = arm("dense", "--config.train.save_every=5")
  plan = dataclasses.replace(plan, peak_learning_rate=1e30)  # which no config may ask for
  what = r"'dense': the (loss|gradient norm) of step [2-4] is (nan|inf)"
  message = f"{what}; there is no checkpoint yet in .*points"
  with pytest.raises(NotFiniteError, match=message):
    train_arm(loaded, plan, store, tmp_path / "run")
  assert not (tmp_path / "run" / "result.json").exists()
  assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") >= 1


class FailsAt(TrainStep):
  """A step whose call number `at` gives other scalars."""

  def __init__(self, step, at, scalars):
    self.step, self.at, self.scalars, self.calls = step, at, scalars, 0

  def compile(self, *arguments):
    self.step = self.step.compile(*arguments)
    return self

  def __call__(self, *arguments):
    state, scalars = self.step(*arguments)
    self.calls += 1
    return state, scalars | (self.scalars if self.calls == self.at else {})


@pytest.mark.parametrize(
  "is_last, scalars, words",
  [
    (False, {"loss": np.nan}, "the loss of step 7 is nan; the checkpoint of step 6 remains in"),
    # The loss is of the weights before the update: saved, they would stop every further start.
    (True, {"gradient_norm": np.inf}, "the gradient norm of step {last} is inf; the checkpoint of"),
  ],
)
def test_what_is_no_number_keeps_the_checkpoint_before_it(
  store, tmp_path, monkeypatch, is_last, scalars, words
):
  loaded, plan = arm("dense", "--config.train.save_every=3")
  at = plan.num_steps if is_last else 7
  make = lambda *a: FailsAt(make_train_step(*a), at, scalars)  # noqa: E731
  with monkeypatch.context() as patch:
    patch.setattr(setup, "make_train_step", make)
    with pytest.raises(NotFiniteError, match=words.format(last=at)):
      train_arm(loaded, plan, store, tmp_path / "run")
  lines = []
  train_arm(loaded, plan, store, tmp_path / "run", lambda progress: lines.append(progress.step))
  assert 1 < lines[0] <= at and (is_last or lines[0] == 7)


def test_held_out_text_of_no_finite_loss_is_a_run_that_diverged(run, store, tmp_path, monkeypatch):
  """It failed, so a study that tries learning rates never came to an end of its arm."""
  folder = tmp_path / "run"
  shutil.copytree(run, folder)
  (folder / "result.json").unlink()  # its last checkpoint is scored again
  make = lambda *a: lambda *b: lambda inputs, *c: np.full(inputs.shape, np.inf)  # noqa: E731
  loaded, plan = arm("dense", "--config.train.save_every=10", "--config.train.eval_every=15")
  with monkeypatch.context() as patch:
    patch.setattr(setup, "make_scorer", make)
    with pytest.raises(NotFiniteError, match="not finite; the model diverged.* learning rate"):
      train_arm(loaded, plan, store, folder)
  assert NotFiniteError.__name__ == NOT_FINITE and not (folder / "result.json").exists()
  train_arm(loaded, plan, store, folder)
  scores = [json.loads((f / "result.json").read_text())["validation"] for f in (run, folder)]
  assert scores[0] == scores[1]


def test_micro_batches_must_divide_the_batch():
  batch = arm("dense")[1].batch_sequences
  assert batch % 2
  with pytest.raises(UserError, match=f"micro_batch_sequences=2 does not divide.* {batch} seq"):
    arm("dense", "--config.train.micro_batch_sequences=2")


def test_a_budget_larger_than_the_corpus_is_refused(capsys, tmp_path, store):
  arguments = [f"--config={ROOT}/configs/demo.py:tiny", f"--workdir={tmp_path}/s"]
  status = cli.main(
    ["study", *arguments, f"--config.data.store={store.folder}", "--config.data.tokenizer=bytes",
     "--config.budget.dense_tokens=40000000"]
  )  # fmt: skip
  assert status == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and "unique" in error
  assert not (tmp_path / "s").exists()


def test_keeping_one_checkpoint_is_refused(store, tmp_path):
  loaded, plan = arm("dense", "--config.train.keep_checkpoints=1")
  with pytest.raises(UserError, match="keep_checkpoints=1 leaves nothing to fall back on"):
    train_arm(loaded, plan, store, tmp_path / "run")
