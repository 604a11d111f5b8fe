"""Over which mesh axes values vary, where shard_map checks it (check_vma); no effect elsewhere."""

import jax
from jax import lax


def _varying(a) -> frozenset[str]:
  kind = jax.typeof(a)
  return kind.mat.varying if hasattr(kind, "mat") else kind.vma  # jax 0.12, jax 0.11


def equally_varying(*arrays):
  """The arrays as varying over every mesh axis that one of them varies over, so that what derives
  from them agrees in type; transposed, a weight's gradient is summed over the data axes."""
  axes = frozenset().union(*map(_varying, arrays))

  def vary(a):
    missing = tuple(sorted(axes - _varying(a)))
    return lax.pcast(a, missing, to="varying") if missing else a

  return tuple(map(vary, arrays))
