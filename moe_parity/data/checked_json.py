"""JSON files of others, checked against a shape before anything of them is used; one-line errors.

Shapes are those of `stored.shape`.
"""

from pathlib import Path
from typing import Any

from moe_parity.data import storage
from moe_parity.errors import UserError
from moe_parity.files import parse_json
from moe_parity.stored.shape import mismatch, not_finite


def read(path: str | Path, shape: Any, way_out: str = "replace the file") -> Any:
  """The value of a JSON file, local or remote.

  Args:
    way_out: how the error ends: what the user can do.
  Raises:
    FileNotFoundError, NotADirectoryError: it is not there.
    UserError: it is no JSON (nan, infinity, lone surrogates and one name twice are none), nested
      too deeply, or not of this shape.
  """
  return parse(storage.read_bytes_of(path), shape, str(path), way_out)


def parse(data: bytes, shape: Any, what: str, way_out: str = "replace the file") -> Any:
  """As `read`, from the bytes; `what` is their name in errors."""
  try:
    value = parse_json(data.decode("utf-8"))
  except ValueError as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{what} is damaged ({reason}); {way_out}") from None
  problem = mismatch(value, shape)
  if not problem and (place := not_finite(value)):
    problem = f"{place} is no finite number"
  if problem:
    raise UserError(f"{what} is damaged ({problem}); {way_out}")
  return value
