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


def test_a_gpus_memory_fraction_is_set_unless_the_user_sets_it():
  code = (
    "import os; from moe_parity.startup import start_jax; start_jax();"
    "print([os.environ.get(f'XLA_{n}_MEM_FRACTION') for n in ('CLIENT', 'PYTHON_CLIENT')])"
  )
  cases = (
    ({}, ["0.92", None]),
    ({"XLA_CLIENT_MEM_FRACTION": "0.4"}, ["0.4", None]),
    ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}, [None, "0.4"]),  # XLA refuses both at once
  )
  for given, expected in cases:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")} | given
    done = subprocess.run(
      [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)


def test_compiled_programs_go_where_the_user_says(tmp_path):
  code = (
    "import sys; from moe_parity.startup import start_jax; start_jax(compile_cache=sys.argv[1]);"
    "import jax; print(jax.config.jax_compilation_cache_dir)"
  )
  cases = (
    ("", {}, f"{tmp_path}/compiled"),
    ("", {"JAX_COMPILATION_CACHE_DIR": "a"}, "a"),
    ("b", {"JAX_COMPILATION_CACHE_DIR": "a"}, "b"),
  )
  for asked, given, expected in cases:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"MOE_PARITY_CACHE": str(tmp_path)} | given
    done = subprocess.run(
      [sys.executable, "-c", code, asked], env=environment, capture_output=True, text=True,
      check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected
