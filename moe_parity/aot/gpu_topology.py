"""Meshes of NVIDIA cards that are not attached: enough to compile for them.

What JAX asks a real device for, cuDNN's version and the compute capability, is answered from the
card's description while a program is traced (`described`).
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator

from jax.experimental import topologies
from jax.sharding import Mesh

from moe_parity.aot import cuda
from moe_parity.kernels import common
from moe_parity.planning.gpu_cards import Card, Host
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding.mesh import make_mesh

CUDNN = (9, 22, 0)  # what a program is compiled for; a newer one runs it
CUDA = (13, 0, 0)
CUDNN_ATTENTION = "jax._src.cudnn.fused_attention_stablehlo"
# What the compiler is asked. Without a device it cannot time Triton's tiles and would take the
# smallest for every product; cuBLASLt's kernels, chosen at run time, are what a device would mostly
# take. cuDNN's graphs are built, which checks that they exist and counts their workspace.
OPTIONS = {
  "xla_gpu_enable_triton_gemm": False,
  "xla_gpu_cudnn_deviceless_compilation_mode": "CUDNN_DEVICELESS_COMPILATION_AUTO",
}
UNCHECKED_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def gpu_mesh(host: Host, sizes: MeshSizes) -> Mesh:
  """A mesh of a host's cards.

  Raises:
    UserError: the compiler is not installed, or too old.
  """
  cuda.require()
  cuda.driver_without_devices()
  topology = topologies.get_topology_desc(
    platform="cuda",
    topology_name=host.card.name,
    target_config=target_text(host.card),
    topology=f"1x1x{host.num_devices}",  # hosts of a slice: one, its processes: one, their cards
  )
  return make_mesh(sizes, topology.devices)


def compiler_options() -> dict:
  """What to compile with: cuDNN's graphs are checked where a driver library could be loaded."""
  return UNCHECKED_OPTIONS if cuda.driver_without_devices() else OPTIONS


@contextlib.contextmanager
def described(card: Card) -> Iterator[None]:
  """Programs traced inside are for this card, as far as JAX and the choice of attention ask."""
  version = CUDNN[0] * 10_000 + CUDNN[1] * 100 + CUDNN[2]

  def reaches(capability: str) -> bool:
    return card.compute_capability >= float(capability)

  answers = {"check_cudnn_version": lambda: version, "check_compute_capability": reaches}
  with common.describe_gpu(card.compute_capability), _answering(answers):
    yield


@contextlib.contextmanager
def _answering(answers: dict[str, Callable]) -> Iterator[None]:
  """JAX's own questions to a device, answered by these functions instead."""
  attention = importlib.import_module(CUDNN_ATTENTION)
  before = {name: getattr(attention, name) for name in answers}
  try:
    for name, answer in answers.items():
      setattr(attention, name, answer)
    yield
  finally:
    for name, function in before.items():
      setattr(attention, name, function)


def target_text(card: Card) -> str:
  """The card in the compiler's words, a text `GpuTargetConfigProto`."""
  major, minor = (int(part) for part in str(card.compute_capability).split("."))
  extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
  cuda_version, cudnn_version = (".".join(map(str, version)) for version in (CUDA, CUDNN))
  device = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": card.shared_bytes,
    "threads_per_core_limit": card.threads,
    "core_count": card.cores,
    "fpus_per_core": card.lanes,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "memory_bandwidth": int(card.hbm_bandwidth),
    "l2_cache_size": card.l2_bytes,
    "clock_rate_ghz": card.clock_ghz,
    "device_memory_size": card.memory_bytes,
    "shared_memory_per_block_optin": card.shared_bytes_block,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "driver_version": f'"{cuda_version}"',
    "runtime_version": f'"{cuda_version}"',
    "compile_time_toolkit_version": f'"{cuda_version}"',
    "dnn_version": f'"{cudnn_version}"',
    "name": f'"{card.product}"',
  }
  lines = [f"  {name}: {value}" for name, value in device.items()]
  lines.append(
    f"  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}"
  )
  versions = (("dnn_version_info", CUDNN), ("runtime_version", CUDA))
  lines = ["gpu_device_info {", *lines, "}", 'platform_name: "CUDA"']
  lines += [
    "{} {{ major: {} minor: {} patch: {} }}".format(name, *numbers) for name, numbers in versions
  ]
  return "\n".join([*lines, f'device_description_str: "{card.product}"', ""])
