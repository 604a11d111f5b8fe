"""Whether the processes of one run are the same program with the same input.

Processes that differ compile different programs; their collectives then hang or compute nonsense.
So before anything is trained they compare the code's version, JAX and libtpu, and the config.
"""

import collections
import hashlib
import importlib.metadata
import importlib.util
import json

import numpy as np

from moe_parity.errors import UserError
from moe_parity.sharding import multihost
from moe_parity.training.versions import versions


def facts(config: dict) -> dict[str, str]:
  """What must be equal in every process, by name."""
  has_libtpu = importlib.util.find_spec("libtpu") is not None
  return {
    **{name: versions()[name] for name in ("moe_parity", "jax", "jaxlib", "python")},
    "libtpu": importlib.metadata.version("libtpu") if has_libtpu else "none",
    "config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12],
  }


def check_agreement(config: dict) -> None:
  """Call in every process of a run, before the first that is trained.

  Raises:
    UserError: in every process, where one differs; names it, in what, and this process's own value.
  """
  mine = facts(config)
  digests = [int(hashlib.sha256(v.encode()).hexdigest()[:7], 16) for v in mine.values()]
  gathered = multihost.all_gather(np.array(digests, np.int32)).reshape(-1, len(mine))
  lines = disagreements(gathered, list(mine))
  if lines:
    own = ", ".join(f"{name} {value}" for name, value in mine.items())
    raise UserError(
      f"the processes of this run differ: {'; '.join(lines)} (this one has {own}); start the same"
      " command with the same installation on every host"
    )


def disagreements(digests: np.ndarray, names: list[str]) -> list[str]:
  """A line for every process that differs from most of the others (from the first, where as many
  differ as agree).

  Args:
    digests: a row a process, a column a name.
  """
  usual = []
  for column in digests.T.tolist():
    counts = collections.Counter(column)  # in the order of processes, so a tie is the first's
    usual.append(counts.most_common(1)[0][0])
  lines = []
  for process, row in enumerate(digests.tolist()):
    odd = [name for name, value, most in zip(names, row, usual, strict=True) if value != most]
    if odd:
      lines.append(f"process {process} in {', '.join(odd)}")
  return lines
