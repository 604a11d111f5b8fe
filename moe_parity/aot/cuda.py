"""The CUDA compiler without a GPU: its packages, and a driver library for a machine without one.

XLA's CUDA compiler comes with JAX's plugin and needs no device to compile for one that is described
to it. cuDNN, which it asks whether an attention kernel exists for a shape, loads its engines only
where it finds a driver. `driver_without_devices` builds a library with the driver's names in which
there are no devices, so that cuDNN checks shapes and states workspaces and loads nothing.
"""

import ctypes
import functools
import importlib.util
import pathlib
import re
import shutil
import subprocess

from moe_parity.data.storage import cache_folder, locked
from moe_parity.errors import UserError
from moe_parity.files import replacing

PLUGIN = "jax_plugins.xla_cuda13"
PLUGIN_PACKAGE = "jax-cuda13-plugin"
# Of the plugin. 0.11.2 asks CUDA for a device where it builds a cuDNN graph, and crashes on the
# collectives of several cards.
FIRST_WITHOUT_DEVICES = (0, 12)
DRIVER = "libcuda.so.1"
NO_DEVICE, NOT_FOUND = 100, 500  # CUDA_ERROR_NO_DEVICE, CUDA_ERROR_NOT_FOUND
_SOURCE = """\
#define _GNU_SOURCE
#include <dlfcn.h>
int cuDeviceGetCount(int *count) {{ *count = 0; return 0; }}
int cuGetProcAddress_v2(const char *name, void **function, int version, long flags, int *status) {{
  Dl_info here;
  dladdr((void *)cuDeviceGetCount, &here);
  *function = dlsym(dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD), name);
  if (status) *status = !*function;
  return *function ? 0 : {not_found};
}}
int cuGetProcAddress(const char *name, void **function, int version, long flags) {{
  return cuGetProcAddress_v2(name, function, version, flags, 0);
}}
"""
_WRITTEN = ("cuDeviceGetCount", "cuGetProcAddress_v2", "cuGetProcAddress")


def require() -> None:
  """
  Raises:
    UserError: a package that compiling for a GPU needs is not installed, or too old for it.
  """
  for module in (PLUGIN, "nvidia.cudnn"):
    if not _is_installed(module):
      raise UserError(
        "compiling for a GPU that is not here needs XLA's CUDA compiler and cuDNN, which are not"
        " installed (Linux on x86-64 only, 3 GB); run pip install 'moe_parity[gpu-aot]'"
      )
  version = _version(PLUGIN_PACKAGE)
  if tuple(map(int, re.findall(r"\d+", version)[:2])) < FIRST_WITHOUT_DEVICES:
    first = ".".join(map(str, FIRST_WITHOUT_DEVICES))
    raise UserError(
      f"{PLUGIN_PACKAGE} is {version} here, and compiling for a GPU that is not here needs {first}"
      " or newer (training does not); run pip install 'moe_parity[gpu-aot]', in an environment of"
      " its own where this one trains"
    )


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # not even the package it would be in
    return False


@functools.cache
def driver_without_devices() -> str:
  """Loads a CUDA driver library for cuDNN to find: this machine's, or one that has no devices.

  Call before JAX loads cuDNN.

  Returns:
    "" or, where there is none and none can be built, why. Then cuDNN checks no shapes.
  """
  try:
    ctypes.CDLL(DRIVER, mode=ctypes.RTLD_GLOBAL)
    return ""
  except OSError:
    pass
  if not shutil.which("cc"):
    return "no C compiler (cc) is installed to build the driver library it looks for"
  cudnn = pathlib.Path(importlib.util.find_spec("nvidia.cudnn").submodule_search_locations[0])
  graph = cudnn / "lib" / "libcudnn_graph.so.9"
  if not graph.exists():
    return f"{graph} does not exist"
  version = _version("nvidia-cudnn-cu13")
  folder = cache_folder() / f"driver_without_devices_{version}"
  with locked(folder):
    if not (folder / DRIVER).exists() and (why := _build(folder, graph)):
      return f"cc cannot build the driver library it looks for: {why}"
  # Found by its name when cuDNN opens `libcuda.so.1`, wherever it lies.
  ctypes.CDLL(str(folder / DRIVER), mode=ctypes.RTLD_GLOBAL)
  return ""


def _build(folder: pathlib.Path, library: pathlib.Path) -> str:
  """Compiles the driver library with every function that `library` looks up by name; returns what
  the compiler complains of, "" where it succeeds."""
  found = re.findall(rb"\0(cu[A-Z]\w{2,60})(?=\0)", library.read_bytes())
  names = sorted({name.decode() for name in found} - set(_WRITTEN))
  functions = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in names)
  folder.mkdir(parents=True, exist_ok=True)
  source = folder / "driver.c"
  source.write_text(_SOURCE.format(not_found=NOT_FOUND) + functions)
  options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{DRIVER}"]
  try:
    with replacing(folder / DRIVER) as built:
      subprocess.run(
        ["cc", *options, "-o", built, source, "-ldl"], check=True, capture_output=True, text=True
      )
  except subprocess.CalledProcessError as error:
    return " ".join(error.stderr.split())[:200] or f"exit code {error.returncode}"
  return ""


def _version(package: str) -> str:
  from importlib import metadata

  return metadata.version(package)
