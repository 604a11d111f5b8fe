"""Token store to batches: windows in a seeded order, under a limit of unique and of seen tokens.

The state of a loader is one integer, the number of rows handed out by all hosts together; the rest
follows from it, so a run resumes exactly, on any number of hosts.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moe_parity.data.ledger import BudgetOverrun
from moe_parity.data.mixture import mixture_of
from moe_parity.data.token_store import Split
from moe_parity.data.window_order import Order, unique_windows
from moe_parity.errors import UserError

_ORDER_BLOCK = 4096  # positions whose windows are computed at once
_ENDLESS = 1 << 40  # steps of a run whose number of tokens is not limited


@runtime_checkable
class Rows(Protocol):
  """What a loader and its ledger need of a source of rows."""

  name: str
  fingerprint: str
  location: str

  def num_windows(self, seq_len: int) -> int:
    """Rows that there are."""

  def row(self, window: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of a row, each [seq_len]."""


class Loader:
  """An endless or bounded stream of batches; `iter` begins at `start_row`.

  A batch is {"inputs": int32 [b, S], "targets": int32 [b, S], "window": int32 [b]} with
  b = batch_sequences / num_hosts: this host's contiguous part of the global batch, so hosts
  joined in order give the global batch whatever their number.

  Args:
    split: the stream, usually `store.train`; or anything with its `row`, `num_windows` and names.
    batch_sequences: rows in a global batch.
    num_unique_tokens: budget of unique data, rounded down to whole windows; 0 is all of the stream.
      With a mixture it is what the mixture says.
    seed: names the order and the subset; the same for all arms that are compared.
    start_row: rows already handed out by all hosts, the saved state.
    num_tokens: tokens the run may see; a batch that would pass it is not handed out. None is no
      limit.
    mixture: share and unique tokens of each domain, as `ArmPlan.mixture` has them; {} takes
      documents as they come.
    prefetch: batches read ahead by one background thread; 0 reads when asked.
  Raises:
    UserError: sizes that do not fit together, or a stream with less data than the budget.
  """

  def __init__(
    self,
    split: Split | Rows,
    batch_sequences: int,
    seq_len: int,
    num_unique_tokens: int = 0,
    seed: int = 0,
    *,
    start_row: int = 0,
    num_tokens: int | None = None,
    mixture: Mapping[str, Mapping] | None = None,
    host_index: int = 0,
    num_hosts: int = 1,
    prefetch: int = 2,
  ):
    for name, value in (("batch_sequences", batch_sequences), ("seq_len", seq_len)):
      if value < 1:
        raise UserError(f"{name}={value} must be at least 1")
    if batch_sequences % num_hosts or not 0 <= host_index < num_hosts:
      raise UserError(
        f"batch_sequences={batch_sequences} cannot be cut for host {host_index} of {num_hosts}; "
        f"use a batch that is a multiple of {num_hosts}"
      )
    if start_row < 0:
      raise UserError(f"start_row={start_row} must not be negative")
    num_windows = split.num_windows(seq_len)
    self.split, self.batch_sequences, self.seq_len = split, batch_sequences, seq_len
    if mixture:
      self.order = mixture_of(split, seq_len, mixture, seed)
    else:
      num_unique = unique_windows(num_unique_tokens, num_windows, seq_len)
      self.order = Order(num_windows, num_unique, seed)
    self.start_row, self.num_tokens, self.prefetch = start_row, num_tokens, prefetch
    self.host_index, self.num_hosts = host_index, num_hosts
    self._block = lru_cache(maxsize=4)(
      lambda block: self.order.windows(block * _ORDER_BLOCK, (block + 1) * _ORDER_BLOCK)
    )

  @property
  def num_unique_tokens(self) -> int:
    """Tokens in the budget after rounding down to whole windows."""
    return self.order.num_unique * self.seq_len

  def windows(self, start: int, stop: int) -> np.ndarray:
    """Windows at global rows start ... stop - 1 of the run."""
    first, last = start // _ORDER_BLOCK, (stop - 1) // _ORDER_BLOCK
    joined = np.concatenate([self._block(block) for block in range(first, last + 1)])
    return joined[start - first * _ORDER_BLOCK : stop - first * _ORDER_BLOCK]

  def batch(self, row: int) -> dict[str, np.ndarray]:
    """This host's part of the global batch whose first row is `row`."""
    share = self.batch_sequences // self.num_hosts
    first = row + self.host_index * share
    windows = self.windows(first, first + share)
    inputs, targets = _aligned(share, self.seq_len), _aligned(share, self.seq_len)
    for row, window in enumerate(windows):
      inputs[row], targets[row] = self.split.row(int(window), self.seq_len)
    return {"inputs": inputs, "targets": targets, "window": windows.astype(np.int32)}

  def check(self, row: int) -> None:
    """Raises BudgetOverrun if the batch that begins at `row` would pass `num_tokens`."""
    if self.num_tokens is None:
      return
    after = (row + self.batch_sequences) * self.seq_len
    if after > self.num_tokens:
      raise BudgetOverrun(
        f"the batch after {row * self.seq_len} tokens would make {after} tokens seen, the plan "
        f"allows {self.num_tokens}; the run is complete, or its batch or steps are not as planned"
      )

  def __iter__(self) -> "Batches":
    return Batches(self)


def _aligned(rows: int, columns: int) -> np.ndarray:
  """An int32 array at an address that XLA:CPU takes for its own buffer, without a copy."""
  size = 4 * rows * columns
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(np.int32).reshape(rows, columns)


class Batches:
  """Iterator over a loader. `row` is the state: rows handed out by all hosts so far."""

  def __init__(self, loader: Loader):
    self.loader, self.row = loader, loader.start_row
    self._source: Iterator | None = None

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    self.loader.check(self.row)
    if self._source is None:
      self._source = _read(self.loader)
    batch = next(self._source)
    self.row += self.loader.batch_sequences
    return batch


class _Steps:
  """The batches of a loader by step, as grain's random access source."""

  def __init__(self, loader: Loader):
    self._loader = loader

  def __len__(self) -> int:
    loader = self._loader
    if loader.num_tokens is None:
      return _ENDLESS
    rows = loader.num_tokens // loader.seq_len - loader.start_row
    return max(0, rows // loader.batch_sequences)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    return self._loader.batch(self._loader.start_row + int(step) * self._loader.batch_sequences)


def _read(loader: Loader) -> Iterator[dict[str, np.ndarray]]:
  """The batches in their order, `loader.prefetch` of them read ahead by a thread of their own.

  Reading ahead begins with the second: grain and what it loads take most of a second to import,
  which the first step should not wait for.
  """
  steps = _Steps(loader)
  if len(steps):
    yield steps[0]
  import grain

  threads = min(1, loader.prefetch)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=loader.prefetch)
  yield from grain.MapDataset.source(steps)[1:].to_iter_dataset(options)


def prefetch(batches: Iterable[Any], put: Callable[[Any], Any], depth: int = 1) -> Iterator[Any]:
  """Keeps `depth` batches on the way to the device while the one before them is in use; the first
  is handed out as soon as it is there.

  Args:
    put: starts the transfer of one batch and returns at once, such as `jax.device_put`.
  Raises:
    what `batches` raises, once the batches before it are handed out: a budget that ends does not
    cost the steps it still allows.
  """
  waiting: deque = deque()
  source, ended, ahead = iter(batches), None, 0
  while ended is None or waiting:
    while ended is None and len(waiting) <= ahead:
      try:
        waiting.append(put(next(source)))
      except Exception as error:  # noqa: BLE001 - raised below, in its turn
        ended = error
    ahead = depth
    if waiting:
      yield waiting.popleft()
  if not isinstance(ended, StopIteration):
    raise ended
