"""The fields of a SkyPilot task that launch/sky.yaml uses, and a check that names a misspelt one.

Written from SkyPilot's YAML reference (docs.skypilot.co). A field that the file begins to use must
be added here first. Where SkyPilot is installed its own reader judges too.
"""

from tests.helpers.kubernetes_fields import differences

TASK = {
  "name": str,
  "workdir": str,
  "resources": {
    "accelerators": {str: int},
    "use_spot": bool,
    "disk_size": int,
    "job_recovery": {"recover_on_exit_codes": [int]},
  },
  "setup": str,
  "run": str,
}


def problems(task: dict) -> list[str]:
  """Every field of a task that SkyPilot does not have, or of the wrong kind, by its path.

  A variable of `envs` without a value (null) must be given at launch.
  """
  rest = {name: value for name, value in task.items() if name != "envs"}
  envs = {name: value for name, value in task.get("envs", {}).items() if value is not None}
  return [*differences(rest, TASK, ""), *differences(envs, {str: str}, ".envs")]
