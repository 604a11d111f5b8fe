"""The last part of `bench --only=gpu`: two arms of the demo, trained as a user would train them.

In a process of its own, with what memory the benchmark's process has left on the GPU.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from moe_parity.config import shipped
from moe_parity.files import read_json

ARMS = ("dense", "moe_20")


def trained(seconds: float | int, tiny: bool) -> dict[str, Any]:
  """Figures of each arm's first seed, and the exit code; "stopped" after so many seconds.

  Args:
    tiny: the demo's smallest size in place of that for a GPU.
  """
  config = f"{shipped('configs/demo.py')}:{'tiny' if tiny else 'gpu'}"
  figures: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "moe_parity.cli", "study", f"--config={config}",
               f"--workdir={folder}/study", f"--only={','.join(ARMS)}",
               "--config.study.learning_rate_grid=()"]  # fmt: skip
    for arm in ARMS:
      command.append(f"--config.arms.{arm}.seeds=(0,)")
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
      done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
      )
      figures["exit_code"] = done.returncode
      if done.returncode:
        figures["error"] = " ".join(done.stderr.split())[-300:]
    except subprocess.TimeoutExpired:
      figures["exit_code"] = "stopped"
    for path in sorted(pathlib.Path(folder).glob("study/runs/*/result.json")):
      figures |= _of_run(read_json(path))
  return figures


def _of_run(result: dict) -> dict[str, Any]:
  return {
    f"{result['name']} {figure}": value
    for figure, value in (
      ("bpc", result["validation"]["bpc"]),
      ("seconds", result["seconds"]),
      ("step_seconds", result["step_seconds"]),
      ("attention", result["attention"]),
    )
  }
