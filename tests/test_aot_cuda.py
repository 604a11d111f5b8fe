"""The CUDA compiler's packages, and the driver library that has no devices."""

import ctypes
import os
import shutil

import pytest

from moe_parity.aot import cuda
from moe_parity.aot.gpu_topology import target_text
from moe_parity.cli import main
from moe_parity.planning.gpu_cards import CARDS


def test_a_missing_compiler_says_how_to_get_it(monkeypatch, capsys):
  monkeypatch.setattr(cuda, "_is_installed", lambda module: False)
  assert main(["compile", "--config=configs/single_gpu.py:tiny", "--arm=dense", "--topology=h100",
               "--config.model.dtype=bfloat16"]) == 2  # fmt: skip
  assert "moe_parity[gpu-aot]" in capsys.readouterr().err


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
