"""What the tests' own type checks notice (tests/helpers/type_checks.py)."""

import beartype.roar
import jax.numpy as jnp
import jaxtyping
import pytest

from moe_parity.console import duration
from moe_parity.model.moe import balance_loss
from moe_parity.planning.mesh_sizes import MeshSizes


def test_a_wrong_type_is_noticed_without_arrays():
  with pytest.raises(beartype.roar.BeartypeCallHintParamViolation):
    duration("an hour")
  with pytest.raises(beartype.roar.BeartypeCallHintParamViolation):
    MeshSizes("one", 1, 1)


def test_axes_of_one_name_must_have_one_size():
  with pytest.raises(jaxtyping.TypeCheckError):
    balance_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
