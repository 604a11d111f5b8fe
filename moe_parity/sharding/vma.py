"""Mesh axes over which values vary (JAX: vma), which shard_map checks with check_vma."""

import jax
from jax import lax


def _varying(a) -> frozenset[str]:
  kind = jax.typeof(a)
  return kind.mat.varying if hasattr(kind, "mat") else kind.vma  # jax 0.12, jax 0.11


def match_varying_axes(*arrays):
  """Casts arrays to vary over every mesh axis that any of them varies over, so that types agree;
  transposed, a weight's gradient is summed over the data axes. No effect without check_vma."""
  axes = frozenset().union(*map(_varying, arrays))

  def vary(a):
    missing = tuple(sorted(axes - _varying(a)))
    return lax.pcast(a, missing, to="varying") if missing else a

  return tuple(map(vary, arrays))
