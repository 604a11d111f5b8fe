"""Versions of Python, this package and of the libraries that decide a run's numbers."""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess

VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "moe_parity")


@functools.cache
def versions() -> dict[str, str]:
  """Of Python and of what decides a run's numbers."""
  numbers = {name: importlib.metadata.version(name) for name in VERSIONS}
  if commit := _commit():
    numbers["moe_parity"] += f" ({commit})"
  return numbers | {"python": platform.python_version()}


def _commit() -> str:
  """The commit of the checkout this package is run from, with -dirty where files differ from it."""
  root = pathlib.Path(__file__).resolve().parents[2]
  if not (root / ".git").exists():
    return ""
  command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):  # no git here, or it does not trust the owner
    return ""
