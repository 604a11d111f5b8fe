"""The CUDA compiler's packages, and the driver library that has no devices."""

import ctypes
import os
import shutil
import types

import jax
import pytest

from moe_parity.aot import compile_gpu, cuda
from moe_parity.aot.gpu_topology import target_text
from moe_parity.cli import main
from moe_parity.errors import UserError
from moe_parity.planning.gpu_cards import CARDS


def test_a_missing_compiler_says_how_to_get_it(monkeypatch, capsys):
  monkeypatch.setattr(cuda, "_is_installed", lambda module: False)
  assert main(["compile", "--config=configs/single_gpu.py:tiny", "--arm=dense", "--topology=h100",
               "--config.model.dtype=bfloat16"]) == 2  # fmt: skip
  assert "moe_parity[gpu-aot]" in capsys.readouterr().err


@pytest.mark.parametrize("version, taken", [("0.11.2", False), ("0.12.0.1", True), ("1.0", True)])
def test_a_compiler_that_asks_a_device_is_refused(monkeypatch, version, taken):
  """That of jax 0.11.2 ends in a segmentation fault where cards are several."""
  monkeypatch.setattr(cuda, "_is_installed", lambda module: True)
  monkeypatch.setattr(cuda, "_version", lambda package: version)
  if taken:
    assert cuda.require() is None
  else:
    with pytest.raises(UserError, match=r"plugin is 0\.11\.2 here.* needs 0\.12 or newer"):
      cuda.require()


@pytest.mark.parametrize(
  "error, words",
  [
    # As jax 0.12.0.1 with cuDNN 9.28.1 prints it.
    (
      "INTERNAL: detail::finalize(desc) failed with message: ptrDesc->finalize(), and code:"
      " CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED in external/xla+/xla/backends/gpu/target_config/"
      "cudnn_device_props.cc(85): 'device_props->deserialize('",
      r"nvidia-cudnn-cu13 is 9\.28\.1 here, .*moe_parity\[gpu-aot\]",
    ),
    ("INTERNAL: no engine (cuDNN)", "no attention kernel for this.*attention=blocks"),
  ],
)
def test_a_cudnn_of_another_version_is_no_missing_kernel(monkeypatch, error, words):
  def refuse(compiler_options):
    raise jax.errors.JaxRuntimeError(error)

  monkeypatch.setattr(compile_gpu, "compiler_options", dict)
  monkeypatch.setattr(compile_gpu.metadata, "version", lambda package: "9.28.1")
  with pytest.raises(UserError, match=words):
    compile_gpu._compiled(types.SimpleNamespace(compile=refuse))


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_driver_library_counts_no_devices(tmp_path):
  library = tmp_path / "libcudnn_graph.so.9"
  library.write_bytes(b"\0cuInit\0cuLaunchKernel\0cuDeviceGetCount\0notcuda\0cuGetProcAddress\0")
  folder = tmp_path / "driver"
  assert cuda._build(folder, library) == ""
  driver = ctypes.CDLL(str(folder / cuda.DRIVER))
  count = ctypes.c_int(7)
  assert driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value == 0
  assert driver.cuInit(0) == driver.cuLaunchKernel() == cuda.NO_DEVICE
  function = ctypes.c_void_p()
  look_up = driver.cuGetProcAddress_v2
  arguments = ctypes.byref(function), 12000, 0, None
  assert look_up(b"cuLaunchKernel", *arguments) == 0 and function.value
  assert look_up(b"cuUnheardOf", *arguments) == cuda.NOT_FOUND and not function.value


def test_without_a_c_compiler_cudnn_checks_nothing_and_says_so(monkeypatch):
  def missing(name, mode=0):
    raise OSError(name)

  monkeypatch.setattr(cuda.ctypes, "CDLL", missing)
  monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
  assert "C compiler" in cuda.driver_without_devices.__wrapped__()


def test_a_c_compiler_that_fails_is_the_reason(monkeypatch, tmp_path):
  """As on machines with a compiler and no headers of the C library."""
  compiler = tmp_path / "cc"
  compiler.write_text("#!/bin/sh\necho 'dlfcn.h: No such file or directory' >&2\nexit 1\n")
  compiler.chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  library = tmp_path / "libcudnn_graph.so.9"
  library.write_bytes(b"\0cuInit\0")
  folder = tmp_path / "driver"
  assert cuda._build(folder, library) == "dlfcn.h: No such file or directory"
  assert not (folder / cuda.DRIVER).exists()


@pytest.mark.parametrize("name", CARDS)
def test_a_description_states_what_the_compiler_reads(name):
  card, text = CARDS[name], target_text(CARDS[name])
  major, minor = str(card.compute_capability).split(".")
  assert f"major: {major} minor: {minor}" in text
  assert f"core_count: {card.cores}\n" in text and f'name: "{card.product}"' in text
  assert text.count("{") == text.count("}")
