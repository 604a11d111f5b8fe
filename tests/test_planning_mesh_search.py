"""The price of a mesh before any compile."""

import dataclasses
import json
import pathlib

import pytest

from moe_parity.config import load
from moe_parity.planning import mesh_search
from moe_parity.planning.mesh_search import candidates
from moe_parity.planning.plan import make_plan
from moe_parity.planning.tpu_slices import parse_slice

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORTS = [
  report
  for folder, name in (("", "compile_*"), ("compiled_meshes", "*"))
  for path in sorted((ROOT / "results" / folder).glob(f"{name}.json"))
  if "seconds" in (report := json.loads(path.read_text()))
]


def busiest_link(chips, is_ring):
  """Bytes on the busiest link where each chip sends 1 to each other one, the shortest way."""
  links = dict.fromkeys(range(chips), 0.0)  # link i goes from i to i + 1
  for start in range(chips):
    for distance in range(1, chips):
      forwards = start + distance < chips if not is_ring else distance <= chips / 2
      if not forwards:
        continue
      share = 0.5 if is_ring and distance == chips / 2 else 1.0  # half goes the other way
      for step in range(distance):
        links[(start + step) % chips] += share
  return max(links.values())


@pytest.mark.parametrize(
  "slice_, size, chips, is_ring",
  [("v6e-64", 8, 8, False), ("v6e-64", 2, 2, False), ("v5p-128", 4, 4, True),
   ("v6e-256", 16, 16, True)],
)  # fmt: skip
def test_an_exchange_loads_the_links_in_the_middle(slice_, size, chips, is_ring):
  sent = chips - 1  # by each chip
  expected = busiest_link(chips, is_ring) / sent
  assert mesh_search._busiest(size, parse_slice(slice_)) == pytest.approx(expected)


def test_a_mesh_axis_takes_whole_torus_axes_first():
  assert mesh_search._torus_axes(16, parse_slice("v6e-64")) == [(8, False), (2, False)]
  assert mesh_search._torus_axes(8, parse_slice("v5p-128")) == [(4, True), (2, False)]
  assert mesh_search._links(16, parse_slice("v6e-64")) == 2
  assert mesh_search._links(8, parse_slice("v5p-128")) == 3


def test_devices_of_one_chip_share_its_links():
  """Eight devices of tpu7x are four chips of 2 x 2, each with two links to send on."""
  config = load(f"{ROOT}/configs/paper_7b.py:arms=dense")
  (arm,), slice_ = make_plan(config).arms, parse_slice("tpu7x-8")
  endless = dataclasses.replace(slice_.generation, link_bandwidth=float("inf"))

  def seconds(slice_):
    return next(c for c in candidates(arm, slice_) if c.sizes.fsdp == 8).seconds

  on_links = seconds(slice_) - seconds(dataclasses.replace(slice_, generation=endless))
  sent = mesh_search.weight_bytes(arm.architecture, mesh_search.MeshSizes(1, 8, 1), 2, 1, True).sent
  assert on_links == pytest.approx(2 * sent / (2 * 100e9))


def searched(report):
  """The candidates of a compiled step's search, and the one that was compiled."""
  batch = report["batch_sequences"]
  overrides = [f"--config.arms.{arm}.batch_sequences={batch}" for arm in ("moe_20", "dense")]
  config = load(f"{ROOT}/configs/{report['config']}.py:activation_rate=0.2", overrides)
  arm = next(arm for arm in make_plan(config).arms if arm.name == "moe_20")
  found = candidates(arm, parse_slice(report["topology"]), remat=report["remat"], kernels=True)
  return found, next(c for c in found if dataclasses.asdict(c.sizes) == report["mesh"])


@pytest.mark.parametrize(
  "report",
  REPORTS,
  ids=lambda r: f"{r['config']}_{r['topology']}_" + "_".join(map(str, r["mesh"].values())),
)
def test_the_price_of_compiled_steps_is_within_a_quarter(report):
  _, price = searched(report)
  assert 4 / 5 < report["seconds"]["step"] / price.seconds < 5 / 4


@pytest.mark.parametrize("slice_name", ["v5e-64", "v6e-64"])
@pytest.mark.parametrize("config", ["paper_2b", "paper_7b"])
def test_meshes_of_one_slice_are_priced_in_compiled_order(config, slice_name):
  """Time a token, as batches differ."""
  of_slice = [r for r in REPORTS if (r["config"], r["topology"]) == (config, slice_name)]
  assert len(of_slice) > 1

  def compiled(report):
    return report["seconds"]["step"] / report["tokens_per_device"]

  def priced(report):
    return searched(report)[1].seconds / report["tokens_per_device"]

  assert sorted(of_slice, key=priced) == sorted(of_slice, key=compiled)


@pytest.mark.parametrize("slice_name", ["v5e-64", "v6e-64"])
@pytest.mark.parametrize("config", ["paper_2b", "paper_7b"])
def test_the_fastest_compiled_mesh_of_a_slice_is_first(config, slice_name):
  of_slice = [r for r in REPORTS if (r["config"], r["topology"]) == (config, slice_name)]
  fastest = min(of_slice, key=lambda r: r["seconds"]["step"] / r["tokens_per_device"])
  found, price = searched(fastest)
  assert found[0] == price


def test_columns_that_are_no_whole_lane_tiles_cost_copies():
  """2,048 over 16 devices is 128 columns, over 32 it is 64."""
  arm = next(a for a in make_plan(load(f"{ROOT}/configs/paper_7b.py")).arms if a.name == "moe_20")

  def copied(fsdp):
    sizes = mesh_search.MeshSizes(64 // fsdp, fsdp, 1)
    return mesh_search.weight_bytes(arm.architecture, sizes, 2, 1, True).copied

  assert copied(1) == copied(8) == copied(16) == 0
  experts = 23 * 78 * 3 * 2048 * 512
  assert copied(32) > 3 * 2 * experts  # gathered twice and scattered once, bfloat16
