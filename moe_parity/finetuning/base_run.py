"""The pretrained run that fine-tuning starts from: whether it is one, and unchanged."""

import dataclasses
import pathlib
from typing import Any

from moe_parity import files
from moe_parity.errors import UserError
from moe_parity.training import run_folder

CERTIFICATE = "certificate.json"


@dataclasses.dataclass(frozen=True)
class BaseRun:
  """A finished, certified, pretrained run.

  Attributes:
    step: of its last checkpoint. sha256: of that checkpoint, as certified.
  """

  folder: pathlib.Path
  plan: dict[str, Any]
  step: int
  sha256: str

  @property
  def checkpoint(self) -> pathlib.Path:
    return self.folder / "checkpoints" / str(self.step)

  def check_checkpoint(self) -> None:
    """Reads the whole checkpoint.

    Raises:
      UserError: it is not there, or not what was certified.
    """
    if not self.checkpoint.is_dir():
      raise UserError(f"{self.checkpoint} is missing; restore it, or train the run again")
    if files.tree_sha256(self.checkpoint) != self.sha256:
      raise UserError(
        f"{self.checkpoint} is not the checkpoint that was certified; restore it, or train the run"
        " again"
      )


def is_ready(folder: pathlib.Path) -> bool:
  """Whether a run of a study is finished and certified; one whose certificate failed never is."""
  if not all((folder / name).is_file() for name in (run_folder.RESULT, CERTIFICATE)):
    return False
  certificate = run_folder.read_json(folder / CERTIFICATE)
  return bool(certificate.get("passed") and certificate.get("files"))


def open_base(folder: pathlib.Path) -> BaseRun:
  """
  Raises:
    UserError: no run, an imported one, one that was fine-tuned, has not finished, or whose
      certificate is missing or failed.
  """
  for name in (run_folder.PLAN, run_folder.CONFIG):
    if not (folder / name).is_file():
      raise UserError(f"{folder} is no run folder (no {name}); give one that `train` made")
  plan = run_folder.read_json(folder / run_folder.PLAN)
  if "architecture" not in plan:
    raise UserError(f"{folder} is a study; give one of its runs, such as {folder}/runs/moe_20-s0")
  if "num_tokens" not in plan:
    raise UserError(
      f"{folder} was imported: its data are not known, so its arms cannot be held to equal"
      " resources; give a run that `train` made"
    )
  if plan.get("finetuning"):
    raise UserError(f"{folder} was fine-tuned already; give the run that it was made from")
  if run_folder.read_result(folder) is None:
    raise UserError(f"{folder} has not finished (no {run_folder.RESULT}); train it first")
  if not (folder / CERTIFICATE).is_file():
    raise UserError(f"{folder} has no {CERTIFICATE}; run its `train` or `study` command again")
  certificate = run_folder.read_json(folder / CERTIFICATE)
  if not certificate.get("passed"):
    raise UserError(
      f"{folder}: its certificate failed, so what comes of it could not be compared; see"
      f" {CERTIFICATE}, and train it again"
    )
  step = plan["num_steps"]
  sha256 = certificate.get("files", {}).get(f"checkpoints/{step}")
  if sha256 is None:
    raise UserError(
      f"{folder / CERTIFICATE} states no hash of the checkpoint of step {step}, as those of early"
      " versions; run its `train` or `study` command again"
    )
  return BaseRun(folder, plan, step, sha256)
