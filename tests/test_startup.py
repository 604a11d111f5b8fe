import os
import subprocess
import sys


def test_jax_starts_silently_with_libtpu_and_without_a_tpu():
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_"))}
  code = "from moe_parity.startup import start_jax; start_jax(); import jax; jax.devices()"
  done = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
  )
  assert "tpu" not in (done.stdout + done.stderr).lower()
