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


@pytest.mark.parametrize(
  "report",
  REPORTS,
  ids=lambda r: f"{r['config']}_{r['topology']}_" + "_".join(map(str, r["mesh"].values())),
)
def test_the_price_of_compiled_steps_is_within_a_half_of_them(report):
  batch = report["batch_sequences"]
  overrides = [f"--config.arms.{arm}.batch_sequences={batch}" for arm in ("moe_20", "dense")]
  config = load(f"{ROOT}/configs/{report['config']}.py:activation_rate=0.2", overrides)
  arm = next(arm for arm in make_plan(config).arms if arm.name == "moe_20")
  found = candidates(arm, parse_slice(report["topology"]), remat=report["remat"], kernels=True)
  price = next(c for c in found if dataclasses.asdict(c.sizes) == report["mesh"])
  assert 2 / 3 < report["seconds"]["step"] / price.seconds < 3 / 2
