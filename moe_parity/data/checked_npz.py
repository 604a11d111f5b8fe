""".npz files that may be damaged or hostile: nothing is unpickled, every error is one line."""

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from moe_parity.errors import UserError

_DAMAGE = (
  OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, SyntaxError,
  zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_arrays(
  path: str | Path, names: Collection[str] | None, way_out: str, optional: Collection[str] = ()
) -> dict[str, np.ndarray]:
  """The named arrays of a file (None: all), and of the optional ones those that are there.

  Args:
    way_out: how the error ends: what the user can do.
  Raises:
    FileNotFoundError: it is not there.
    UserError: it is damaged, lacks one, or holds objects in place of numbers.
  """
  try:
    with open(path, "rb") as file:
      data = np.load(file, allow_pickle=False)
      if not isinstance(data, np.lib.npyio.NpzFile):
        raise ValueError("it is one array, not an .npz file")
      wanted = data.files if names is None else [*names, *(set(optional) & set(data))]
      return {name: data[name] for name in wanted}
  except FileNotFoundError:
    raise
  except _DAMAGE as error:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if "pickle" in reason:  # NumPy says so of anything that begins as no file of its own
      reason = "it is no .npz file of numbers"
    raise UserError(f"{path} is damaged ({reason}); {way_out}") from None
