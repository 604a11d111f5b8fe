"""Names of TPU slices."""

import pytest

from moe_parity.errors import UserError
from moe_parity.planning.tpu_slices import GENERATIONS, Slice, parse_slice


@pytest.mark.parametrize(
  "name, compiler_name, num_chips, num_devices",
  [
    ("v5p-128", "v5p:4x4x4", 64, 64),  # TensorCores, two a chip
    ("v5p:4x4x4", "v5p:4x4x4", 64, 64),
    ("v5e-16", "v5e:4x4", 16, 16),  # chips
    ("v5litepod-16", "v5e:4x4", 16, 16),
    ("v6e-256", "v6e:16x16", 256, 256),
    ("v4-32", "v4:2x2x4", 16, 16),
    ("tpu7x-128", "tpu7x:4x4x4", 64, 128),  # a device is a TensorCore
    ("v5p:16x16x24", "v5p:16x16x24", 6144, 6144),
  ],
)
def test_a_name_counts_what_google_counts(name, compiler_name, num_chips, num_devices):
  found = parse_slice(name)
  assert (found.compiler_name, found.num_chips, found.num_devices) == (
    compiler_name,
    num_chips,
    num_devices,
  )


def test_every_named_slice_reads_its_own_name():
  for generation in GENERATIONS.values():
    for grid in generation.grids:
      slice_ = Slice(generation, grid)
      assert parse_slice(slice_.name) == parse_slice(slice_.compiler_name) == slice_


@pytest.mark.parametrize(
  "name, near",
  [
    ("v5p-100", "v5p-64, v5p-128, v5p-256"),
    ("v5-128", "v5p-64, v5p-128"),
    ("v7x-16:4", "tpu7x-16"),
    ("v5e:32x32", "v5e-256"),
    ("v5p:3x2x1", "v5p-8"),
    ("v5p:2x1x2", "v5p-8"),
    ("h100", "v5p-64"),
    ("l40s", "or one of h100, h200, a100"),
    ("", "v5p-64"),
  ],
)
def test_a_slice_that_does_not_exist_is_refused_with_near_names(name, near):
  with pytest.raises(UserError, match=near):
    parse_slice(name)


def test_a_ring_closes_over_whole_cubes_and_full_planes():
  assert [parse_slice("v5p:4x4x8").wraps(axis) for axis in range(3)] == [True] * 3
  assert [parse_slice("v5p:2x4x4").wraps(axis) for axis in range(3)] == [False, True, True]
  assert [parse_slice("v6e:8x16").wraps(axis) for axis in range(2)] == [False, True]
