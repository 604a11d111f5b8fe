"""Reads the JSON files of run and study folders: whole, unchanged, and of their shape.

A folder may be damaged, edited by hand or a stranger's: what is wrong is one line that names the
file and the field.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from moe_parity import files
from moe_parity.errors import UserError
from moe_parity.stored import analysis_file, run_files, study_files
from moe_parity.stored.shape import mismatch, not_finite

WAY_OUT = "restore it from a copy"
# By the file's name. What a config may hold is the table of `fields`.
SHAPES: Mapping[str, Any] = {
  "config.json": {},
  "result.json": run_files.RESULT,
  "data.json": run_files.DATA,
  "certificate.json": run_files.CERTIFICATE,
  "before.json": run_files.CHAT_SCORE,
  "examined.json": analysis_file.EXAMINED,
  "study.json": study_files.STUDY,
  "analysis.json": analysis_file.ANALYSIS,
  "downstream.json": analysis_file.DOWNSTREAM,
  "architecture.json": study_files.ARCHITECTURE_STEP,
  "activation_rate.json": study_files.ACTIVATION_RATE_STEP,
  "data_reuse.json": study_files.DATA_REUSE_STEP,
}


def shape_of(name: str, value: Any) -> Any:
  """The shape of a file, by its name; plan.json and finetuning.json are of two kinds each, a
  study's and a run's."""
  found = value if isinstance(value, dict) else {}
  if name == "plan.json" and ("arms" in found or "budget" in found):
    return study_files.PLAN
  if name == "plan.json":
    imported = found.get("kind") == "imported"
    return run_files.IMPORTED_PLAN if imported else run_files.ARM_PLAN
  if name == "finetuning.json":
    return study_files.FINETUNING if "arms" in found else study_files.SWEEP
  return SHAPES.get(name, {})


def read_json(path: str | os.PathLike, way_out: str = WAY_OUT) -> dict[str, Any]:
  """A JSON object of a run or study folder.

  Args:
    way_out: how the error ends: what the user can do.
  Raises:
    FileNotFoundError: it is not there.
    UserError: it is not what was written (cut short, a flipped bit, an edit by hand), holds a
      number that is not finite, or a field that is missing or of another type or range.
  """
  path = pathlib.Path(path)
  value = files.read_json(path, way_out)
  check(value, shape_of(path.name, value), path, way_out)
  return value


def check(value: Any, shape: Any, path: str | os.PathLike, way_out: str = WAY_OUT) -> None:
  """
  Raises:
    UserError: the value of a file is not of the shape, or holds a number that is not finite.
  """
  problem = mismatch(value, shape)
  if not problem and (place := not_finite(value)):
    problem = f"{place} is no finite number"
  if problem:
    raise UserError(f"{path} is damaged ({problem}); {way_out}")
