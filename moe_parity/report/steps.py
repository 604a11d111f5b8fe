"""What the paper's three steps left in a study folder; {} where a step was not run."""

import json
import pathlib

from moe_parity.errors import UserError

STEPS = ("architecture", "activation_rate", "data_reuse")


def read_steps(study_folder: str | pathlib.Path) -> dict[str, dict]:
  """Step -> what <step>.json holds, for every one of STEPS.

  Raises:
    UserError: a file that is not a JSON object.
  """
  found: dict[str, dict] = {}
  for step in STEPS:
    path = pathlib.Path(study_folder) / f"{step}.json"
    found[step] = {}
    if not path.is_file():
      continue
    try:
      found[step] = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(f"{path} is not JSON ({error}); run the study again to write it") from None
    if not isinstance(found[step], dict):
      raise UserError(f"{path} holds no JSON object; run the study again to write it")
  return found
