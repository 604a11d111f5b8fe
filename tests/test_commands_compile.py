"""`moe-parity compile`: real compiles for TPU slices, small ones, on this CPU."""

import json
import time

import pytest

from moe_parity.aot import libtpu
from moe_parity.aot.topology import device_placement, slice_mesh
from moe_parity.cli import main
from moe_parity.planning.expert_parallel import tile_padded_rows
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.tpu_slices import parse_slice

pytestmark = pytest.mark.compile
TINY = (
  *("--config=configs/paper_7b.py:activation_rate=0.2,tiny", "--config.budget.batch_multiple=8"),
  *("--config.model.dtype=bfloat16", "--config.model.remat=layer", "--arm=moe_20"),
  *("--config.arms.moe_20.multiple_of=8", "--config.mesh.token_dispatch=ragged_all_to_all"),
)


BATCH_OF_32 = (
  *("--config.arms.moe_20.batch_sequences=32", "--config.arms.dense.batch_sequences=32"),
  "--config.budget.flops_tolerance=0.1",
)


def compiled(capsys, *arguments) -> tuple[int, dict]:
  status = main(["compile", *arguments, "--json"])
  return status, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def report():
  with pytest.MonkeyPatch.context() as patch:
    printed = []
    patch.setattr("builtins.print", lambda text="", **kw: printed.append(text))
    start = time.process_time()
    assert main(["compile", *TINY, "--topology=v5e-4", "--mesh=fsdp=2,expert=2", "--json"]) == 0
    seconds = time.process_time() - start
  return json.loads(printed[-1]) | {"cpu_seconds": seconds}


def test_a_small_step_compiles_in_under_a_minute_and_fits(report):
  """A minute of all cores together: wall time would test who else is on the machine."""
  assert report["fits"] and report["figures"] == "compiler-estimated"
  assert report["cpu_seconds"] < 60


def test_memory_is_reported_by_kind_and_adds_up(report):
  memory = dict(report["memory"])
  hbm, total, _ = memory.pop("hbm"), memory.pop("total"), memory.pop("planned")
  assert hbm == 15.75 * 2**30 and sum(memory.values()) == total
  assert memory["optimizer"] >= 2 * memory["parameters"] > 0


def test_compiled_flops_include_a_second_forward_pass(report):
  """remat="layer" computes each layer twice forward. At this size the places of rows, found by a
  product of 128 by 128 blocks, cost more than the model, so there is no useful upper end."""
  assert report["flops"]["compiled"] > 4 / 3 * report["flops"]["plan"]


def test_seconds_of_a_step_are_those_of_its_parts(report):
  seconds = dict(report["seconds"])
  step, roofline = seconds.pop("step"), seconds.pop("roofline")
  assert step == pytest.approx(sum(seconds.values()))
  assert report["share_of_peak"] == pytest.approx(roofline / step)


def test_tokens_cross_the_expert_axis_and_expert_weights_do_not(report):
  """Over `expert` rows travel by the ragged exchange; what else is gathered there are counts of
  rows, routing weights and their gradients, of which a buffer has room for one a row: no matrix."""
  rows = {(row["collective"], row["axes"]): row for row in report["collectives"]}
  assert rows["ragged-all-to-all", "expert"]["count"] >= 4  # there and back, twice
  gathered = rows.get(("all-gather", "expert"), {"payload_bytes": 0})
  room = tile_padded_rows(2 * 2 * report["tokens_per_device"], 38)  # K 2, twice the mean
  streams, devices = 2, 2  # each stream has a buffer; what is gathered is 4 bytes each
  others = 4 * report["tokens_per_device"]  # 2 choices' weights and counts; experts' are 10 times
  assert gathered["payload_bytes"] <= streams * devices * 4 * (room + others)
  assert ("all-gather", "fsdp") in rows


def test_a_model_that_does_not_fit_says_so_and_exits_with_1(capsys):
  status, report = compiled(
    capsys, "--config=configs/paper_2b.py:arms=dense", "--topology=v5e-1",
    "--config.train.micro_batch_sequences=1",
  )  # fmt: skip
  assert status == 1 and not report["fits"]
  assert report["memory"]["parameters"] + report["memory"]["optimizer"] > report["memory"]["hbm"]
  assert "exceeds available HBM" in report["compiler"]


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--topology=v5p-100"], "v5p-64, v5p-128"),
    (["--topology=v5e-4", "--mesh=expert=3"], "is 3 devices and 4 are here"),
    (["--topology=v5e-4", "--mesh=tensor=4"], "'tensor=4' is not one of data, fsdp, expert"),
    (["--topology=v5e-4", "--mesh=expert=4", "--search"], "leave one out"),
    (
      ["--topology=v5e-32", "--mesh=fsdp=4,expert=8", *BATCH_OF_32],
      "use 'all_to_all' or 'all_gather'",
    ),
    (["--topology=v5e-64"], "cannot be cut for 64 devices"),
    (["--topology=v5e-4", "--arm=moe_21"], "the plan's arms are dense, moe_20; did you mean"),
    (["--topology=v5e-4", "--search=-1"], "--search=-1 is below 0"),
    (["--topology=v5e-4", "--search", "--hlo=step.txt"], "--hlo=step.txt is one program"),
    (["--topology=h100", "--search", "--hlo=step.txt"], "--hlo=step.txt is one program"),
  ],
)
def test_what_cannot_be_compiled_is_refused_before_any_compile(capsys, arguments, words):
  assert main(["compile", *TINY, *arguments]) == 2
  assert words in capsys.readouterr().err


def test_without_libtpu_the_message_says_how_to_get_it(monkeypatch, capsys):
  monkeypatch.setattr(libtpu.importlib.util, "find_spec", lambda name: None)
  assert main(["compile", *TINY, "--topology=v5e-4", "--mesh=data=4"]) == 2
  assert "EXTRA=tpu" in capsys.readouterr().err


def test_a_mesh_axis_may_take_a_part_of_a_torus_axis():
  slice_ = parse_slice("v5p-128")
  mesh = slice_mesh(slice_, MeshSizes(2, 4, 8))
  place = device_placement(slice_, mesh)
  assert place.axes == {"data": 2, "fsdp": 4, "expert": 8}
  assert len({tuple(c) for c in place.coordinates.tolist()}) == 64


def test_a_search_estimates_every_mesh_those_that_fit_first(capsys):
  arguments = ["--config=configs/paper_2b.py:activation_rate=0.2", "--arm=moe_20"]
  arguments += ["--config.budget.batch_multiple=64", "--topology=v5e-64", "--search=0", "--json"]
  assert main(["compile", *arguments]) == 0
  rows = json.loads(capsys.readouterr().out)
  assert {row["data"] * row["fsdp"] * row["expert"] for row in rows} == {64}
  fits = [row["fits"] == "yes" for row in rows]
  assert fits == sorted(fits, reverse=True) and set(fits) == {True, False}
  estimated = [row["estimated_s"] for row in rows if row["fits"] == "yes"]
  assert estimated == sorted(estimated) and estimated[0] > 0


def test_an_arm_that_a_study_adds_is_found(capsys):
  arguments = ["--config=configs/mixture_small.py", "--arm=moe_20", "--topology=v5e-4"]
  arguments += ["--config.budget.batch_multiple=4", "--search=0", "--json"]
  assert main(["compile", *arguments]) == 0
  assert all(row["fits"] == "yes" for row in json.loads(capsys.readouterr().out))
