"""A mesh that cannot train an arm is refused while planning: value, rule, way out."""

import pathlib

import pytest

from moe_parity import config
from moe_parity.errors import UserError
from moe_parity.planning.mesh_sizes import (
  MeshSizes,
  read_mesh,
  resolve,
  shards_whole_experts,
  stored_experts,
)
from moe_parity.planning.plan import make_plan

DEMO = pathlib.Path(__file__).resolve().parent.parent / "configs" / "demo.py"


def plan(*overrides):
  return make_plan(config.load(f"{DEMO}:tiny", overrides), vocab_size=272)


def test_the_open_size_takes_the_devices_that_are_left():
  assert resolve(MeshSizes(-1, 2, 4), 24) == MeshSizes(3, 2, 4)
  assert resolve(MeshSizes(2, 3, 4), 24).num_devices == 24


def test_all_sizes_one_is_a_single_device_of_however_many():
  assert resolve(MeshSizes(), 24) == MeshSizes()


@pytest.mark.parametrize(
  "sizes, num_devices, message",
  [
    (MeshSizes(2, 3, 1), 8, r"data=2 x fsdp=3 x expert=1 is 6 devices and 8 are here; give one"),
    (MeshSizes(-1, 3, 1), 8, r"the 8 devices here are no multiple of 3; change"),
  ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes, num_devices, message):
  with pytest.raises(UserError, match=message):
    resolve(sizes, num_devices)


@pytest.mark.parametrize(
  "num_experts, fsdp, expert, stored",
  [
    (92, 16, 1, 96),  # whole: 4 of padding
    (64, 64, 1, 64),
    (72, 64, 1, 72),  # 56 of padding: columns of 72
    (15, 16, 1, 16),
    (14, 16, 1, 14),  # two of 14 are over an eighth
    (92, 16, 2, 46),  # an expert axis: columns, padded for it alone
    (13, 4, 8, 2),
    (5, 1, 1, 5),
    (0, 4, 1, 0),  # a dense model
  ],
)
def test_experts_are_sharded_whole_where_little_is_padded(num_experts, fsdp, expert, stored):
  assert stored_experts(num_experts, fsdp, expert) == stored
  whole = shards_whole_experts(num_experts, fsdp, expert)
  assert whole == (stored in (96, 64, 16))
  # What is stored says the same of itself as the experts that it is made of.
  assert shards_whole_experts(stored * expert, fsdp, expert) == whole


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(data=0), "mesh.data=0 is below 1; give a whole number, -1 or 1 to"),
    (dict(data=-1, fsdp=-1), r"only one axis can take the rest; set the other -1 to 1"),
  ],
)
def test_sizes_that_mean_nothing_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    read_mesh(MeshSizes(**fields))


def test_an_expert_axis_that_no_arm_uses_is_refused():
  with pytest.raises(UserError, match=r"mesh.expert=2 but no arm has experts; set mesh.expert=1"):
    dense = config.load(f"{DEMO}:tiny").copy_and_resolve_references().unlock()
    dense.mesh.expert = 2
    dense.arms = {"dense": dense.arms.dense}
    make_plan(dense, vocab_size=272)


def test_an_expert_axis_larger_than_an_arms_experts_is_refused():
  most = min(arm.architecture.num_experts for arm in plan().arms if arm.architecture.is_moe)
  with pytest.raises(UserError, match=rf"mesh.expert={most + 1} exceeds its {most} experts; use"):
    plan(f"--config.mesh.expert={most + 1}")


def test_a_batch_or_micro_batch_that_cannot_be_cut_is_refused():
  with pytest.raises(UserError, match=r"a batch of \d+ sequences cannot be cut for 7 devices.*"
                     r"set budget.batch_multiple=7"):  # fmt: skip
    plan("--config.mesh.data=7")
  with pytest.raises(UserError, match=r"micro_batch_sequences=3 cannot be cut for 2 devices"):
    plan("--config.mesh.data=2", "--config.train.micro_batch_sequences=3",
         "--config.budget.batch_multiple=6")  # fmt: skip


def test_a_width_that_fsdp_does_not_divide_is_refused():
  with pytest.raises(
    UserError, match=r"d_model=\d+ is no multiple of mesh.fsdp=7; use mesh.fsdp=1"
  ):
    plan("--config.mesh.fsdp=7")


def test_unresolved_sizes_are_not_checked():
  assert plan("--config.mesh.data=-1").to_dict() == plan().to_dict()
