"""NVIDIA cards by name: memory, peak and bandwidth, and what a compiler has to know. No JAX needed.

A name is a card, `h100`, or several of one host, `h100-8`. Several are taken to be wired all to
all: by NVLink, an L4's and a T4's by PCIe.

Peaks are dense products of bfloat16 with float32 sums, from NVIDIA's data sheets (H100 SXM, H200,
A100 SXM, L4, T4; sheets that print the rate with sparsity were halved). `memory_bytes` is what CUDA
says a card has, which is less than what it is sold as.
"""

import dataclasses
import re

from moe_parity.errors import UserError, nearest
from moe_parity.planning.attention_choice import Device

MOST_CARDS = 8  # of one host
# Of a card's memory that JAX takes at its start (`startup.py`). Its own default of 0.75 would leave
# 20 GiB of an 80 GiB card unused; the rest is for the CUDA context, cuDNN and cuBLAS.
MEMORY_FRACTION = 0.92


@dataclasses.dataclass(frozen=True)
class Card:
  """One model of card.

  Attributes:
    product: its full name. compute_capability: 9.0 for Hopper, 8.0 for Ampere, ...
    peak_flops: FLOP/s of bfloat16 products; 0 where it has no units for them.
    peak_flops_tf32: of products of float32 arrays at XLA's default precision, whose operands
      tensor cores round to TF32; 0 where it has no units for them.
    peak_flops_float32: of float32 products at the highest precision, as the router asks for.
    hbm_bandwidth: bytes/s. link_bandwidth: to the other cards of a host, in one direction, bytes/s
      (NVLink; PCIe of an L4 and a T4).
    memory_bytes: all of it.
    cores: streaming multiprocessors. lanes: float32 units of one.
    clock_ghz: the highest. l2_bytes: of its cache.
    shared_bytes, shared_bytes_block: shared memory of a multiprocessor, and the most of a block.
    threads: of a multiprocessor.
  """

  name: str
  product: str
  compute_capability: float
  peak_flops: float
  peak_flops_tf32: float
  peak_flops_float32: float
  hbm_bandwidth: float
  link_bandwidth: float
  memory_bytes: int
  cores: int
  lanes: int
  clock_ghz: float
  l2_bytes: int
  shared_bytes: int
  shared_bytes_block: int
  threads: int

  @property
  def usable_bytes(self) -> int:
    """Memory that a program of ours may use."""
    return int(MEMORY_FRACTION * self.memory_bytes)

  @property
  def device(self) -> Device:
    """The card as the choice of attention sees it."""
    return Device("gpu", self.compute_capability)

  def peak(self, dtype: str) -> float:
    """FLOP/s of products of a dtype at XLA's default precision.

    Raises:
      UserError: a card without units for it.
    """
    float32 = self.peak_flops_tf32 or self.peak_flops_float32
    peak = self.peak_flops if dtype == "bfloat16" else float32
    if not peak:
      raise UserError(
        f"model.dtype={dtype}: {self.product} has no units for it; use"
        " --config.model.dtype=float32, or another card"
      )
    return peak


HOPPER = dict(
  compute_capability=9.0, peak_flops=989.4e12, peak_flops_tf32=494.7e12, peak_flops_float32=66.9e12,
  cores=132, lanes=128, clock_ghz=1.98, l2_bytes=50 * 2**20, shared_bytes=233472,
  shared_bytes_block=232448, threads=2048,
)  # fmt: skip
AMPERE = dict(
  compute_capability=8.0, peak_flops=312e12, peak_flops_tf32=156e12, peak_flops_float32=19.5e12,
  cores=108, lanes=64, clock_ghz=1.41, l2_bytes=40 * 2**20, shared_bytes=167936,
  shared_bytes_block=166912, threads=2048,
)  # fmt: skip
CARDS = {
  card.name: card
  for card in (
    Card("h100", "NVIDIA H100 80GB HBM3", hbm_bandwidth=3.35e12, link_bandwidth=450e9,
         memory_bytes=84_942_979_072, **HOPPER),
    Card("h200", "NVIDIA H200", hbm_bandwidth=4.8e12, link_bandwidth=450e9,
         memory_bytes=149_250_113_536, **HOPPER),
    Card("a100", "NVIDIA A100-SXM4-80GB", hbm_bandwidth=2.039e12, link_bandwidth=300e9,
         memory_bytes=85_100_068_864, **AMPERE),
    Card("a100_40gb", "NVIDIA A100-SXM4-40GB", hbm_bandwidth=1.555e12, link_bandwidth=300e9,
         memory_bytes=42_297_786_368, **AMPERE),
    Card("l4", "NVIDIA L4", 8.9, 121e12, 60.5e12, 30.3e12, 300e9, 32e9, 23_683_000_000, 58, 128,
         2.04, 48 * 2**20, 102400, 101376, 1536),
    Card("t4", "Tesla T4", 7.5, 0.0, 0.0, 8.1e12, 320e9, 16e9, 15_642_000_000, 40, 64, 1.59,
         4 * 2**20, 65536, 65536, 1024),
  )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Host:
  """Some cards of one model in one machine."""

  card: Card
  num_devices: int

  @property
  def name(self) -> str:
    """`h100` or `h100-8`."""
    return self.card.name + (f"-{self.num_devices}" if self.num_devices > 1 else "")


def is_card(name: str) -> bool:
  """Whether a topology's name is a GPU's and not a TPU slice's."""
  return bool(nearest(_split(name)[0], list(CARDS), cutoff=0.75))


def parse_host(name: str) -> Host:
  """Reads the name of a card or of several.

  Raises:
    UserError: no such card, or more than a host has.
  """
  card, count = _split(name)
  if card not in CARDS:
    near = nearest(card, list(CARDS), cutoff=0.5) or list(CARDS)
    raise UserError(f"topology {name!r} is no known card; use {', '.join(near)}, or h100-8 for 8")
  if not 1 <= count <= MOST_CARDS:
    raise UserError(f"topology {name!r}: a host has 1 to {MOST_CARDS} cards; use {card}-8")
  return Host(CARDS[card], count)


def _split(name: str) -> tuple[str, int]:
  match = re.fullmatch(r"(.*?)(?:-(\d+))?", name.strip().lower())
  return match[1], int(match[2] or 1)
