"""Two processes of this machine as one run: data by host, tokens across the process border, a
checkpoint that a single process resumes from."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.evaluation import specialization
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.startup import start_jax
from moe_parity.training.load_run import count_run_routing, evaluate_run, load_run
from tests.helpers.workers import end_all, start, world

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = [
  f"--config={ROOT}/configs/demo.py:tiny", "--arm=moe_40", "--config.budget.batch_multiple=4",
  "--config.budget.dense_tokens=3072", "--config.budget.flops_tolerance=0.05",
  "--config.evaluation.max_tokens=800",
  "--config.train.log_every=1", "--config.train.save_every=10", "--config.train.eval_every=12",
]  # fmt: skip


def train(workdir, cache, *arguments, devices=1):
  """A started `moe-parity train`. One compile cache for all."""
  return start(cache, "train", f"--workdir={workdir}", *SMALL, *arguments, devices=devices)


def finish(*processes):
  """Their outputs; every process must end well."""
  ends = end_all(*processes)
  for code, output in ends:
    assert code == 0, output
  return [output for _, output in ends]


def two(workdir, cache, *arguments):
  return finish(*(train(workdir, cache, *place, *arguments) for place in world(2)))


def losses(workdir, kind="train"):
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["cross_entropy"] for line in lines if line["kind"] == kind}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """(folder of one process's run, of two processes', what the two said)."""
  folder = tmp_path_factory.mktemp("runs")
  finish(train(folder / "one", folder / "cache"))
  outputs = two(folder / "two", folder / "cache", "--config.mesh.expert=2")
  return folder / "one", folder / "two", outputs


def test_two_processes_log_the_losses_of_one(runs):
  one, two, _ = runs
  for kind in ("train", "validation"):
    expected, found = losses(one, kind), losses(two, kind)
    assert list(expected) == list(found) and len(found) >= 1
    # Float32 sums in another order, which sooner or later tip a choice between two experts that are
    # as good as equal.
    found, expected = (np.array(list(x.values())) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    np.testing.assert_allclose(
      found[:10], expected[:10], rtol=2e-3 if kind == "validation" else 2e-6
    )


def test_the_ledger_of_two_processes_counts_every_row_once(runs):
  one, two, _ = runs
  with np.load(one / "ledger.npz") as expected, np.load(two / "ledger.npz") as found:
    for name in ("counts", "row", "digest"):
      np.testing.assert_array_equal(found[name], expected[name])
  assert json.loads((two / "certificate.json").read_text())["passed"]


def test_two_processes_count_which_experts_held_out_text_goes_to(runs, tmp_path, monkeypatch):
  """As one process counts with the same weights.

  The other run would not do: its losses agree to 1e-5, yet where a gradient is little more than
  rounding, AdamW makes a step of it, and so early most choices are between near equals."""
  two = runs[1]
  monkeypatch.setenv("MOE_PARITY_CACHE", str(two.parent / "cache"))
  copy = shutil.copytree(two, tmp_path / "copy")
  (copy / specialization.SPECIALIZATION).unlink()
  count_run_routing(copy, 16_384)
  expected, found = specialization.load(copy), specialization.load(two)
  for name in ("domain_N", "tokens_N"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  np.testing.assert_array_equal(found.expert_NLE.sum(-1), expected.expert_NLE.sum(-1))
  moved = np.abs(found.expert_NLE - expected.expert_NLE).sum() / 2
  assert moved <= expected.expert_NLE.sum() / 1000 and expected.expert_NLE.sum() > 1000


def test_only_the_first_process_speaks(runs):
  first, second = runs[2]
  assert "certificate passed" in first and "bits per character" in first
  assert "bits per" not in second and "step" not in second


def test_one_process_goes_on_from_the_checkpoint_of_two(runs, tmp_path):
  """Without its result and its last checkpoint, the run of two is unfinished."""
  one, two, _ = runs
  newest = max(int(path.name) for path in (two / "checkpoints").iterdir() if path.name.isdigit())
  for path in (two / "checkpoints" / str(newest)).rglob("*"):
    if path.is_file():
      path.unlink()
  (two / "result.json").unlink()
  (told,) = finish(train(two, one.parent / "cache", "--config.mesh.data=2", devices=2))
  assert "resuming from step" in " ".join(told.split())  # a console breaks lines
  results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
  assert results[1]["finished_step"] == results[0]["finished_step"]
  found, expected = (result["validation"]["cross_entropy"] for result in results)
  np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_a_run_is_scored_alike_on_a_mesh_it_was_not_trained_on(runs, monkeypatch):
  folder = runs[0]
  monkeypatch.setenv("MOE_PARITY_CACHE", str(folder.parent / "cache"))
  expected = json.loads((folder / "result.json").read_text())["validation"]
  found = evaluate_run(folder, expected["mode"], 0, 800, MeshSizes(2, 2, 2))
  assert found["num_tokens"] == expected["num_tokens"]
  np.testing.assert_allclose(found["cross_entropy"], expected["cross_entropy"], rtol=1e-4)
  with pytest.raises(UserError, match="data=3 x fsdp=1 x expert=1 is 3 devices and 8 are here"):
    load_run(folder, MeshSizes(data=3))


@pytest.mark.parametrize(
  "given, told",
  [
    (dict(num_processes=2, process_id=0), "need --coordinator=HOST:PORT"),
    (dict(coordinator="here:1", process_id=0), "each process needs the number of processes"),
    (dict(coordinator="here:1", num_processes=2, process_id=2), "--process-id=2: each process"),
  ],
)
def test_processes_that_cannot_find_each_other_are_refused(given, told):
  with pytest.raises(UserError, match=told):
    start_jax(**given)
