"""libtpu, the TPU compiler: whether it is installed, and how to silence it without a TPU."""

import glob
import importlib.util
import os

from moe_parity.errors import UserError


def silence_probe() -> None:
  """On a machine without a TPU, states what libtpu would look up on a TPU host and, failing,
  report at length. Any values do; JAX then tries the next platform.

  Call before JAX looks for devices.
  """
  if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def require() -> None:
  """
  Raises:
    UserError: libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "compiling for a TPU needs libtpu, which is not installed (Linux on x86-64 only); run"
      " pip install 'moe_parity[tpu]', or EXTRA=tpu bash launch/local.sh compile ..."
    )
