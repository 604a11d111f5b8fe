"""A stream of tokens as Megatron's .bin/.idx pairs: one or several files, read as one array.

The .idx is MMapIndexedDataset version 1: b"MMIDIDX\\0\\0", uint64 version, uint8 dtype code (8
is uint16, 4 is int32), uint64 sequences, uint64 length of the last array; then int32 lengths, int64
byte offsets, int64 document boundaries. A document is one sequence. All is little endian.

A shard holds whole documents and is a dataset by itself; in the order of their names the shards
are one stream, in which a window may begin in one file and end in the next.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from moe_parity.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
DTYPES = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
SHARD_TOKENS = 1 << 27  # 256 MiB of uint16: small enough to hash and to copy in parallel
_HEADER = struct.Struct("<9sQBQQ")


def write_index(path: str | Path, lengths: np.ndarray, dtype: np.dtype) -> None:
  """The .idx of documents of these lengths, stored back to back."""
  code = next(code for code, kind in DTYPES.items() if kind == np.dtype(dtype).newbyteorder("<"))
  lengths = np.asarray(lengths, np.int64)
  if lengths.size and lengths.max() > np.iinfo(np.int32).max:
    raise UserError(f"a document of {lengths.max()} tokens is over the format's 2^31 - 1; split it")
  offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * dtype.itemsize
  with open(path, "wb") as file:
    file.write(_HEADER.pack(MAGIC, 1, code, lengths.size, lengths.size + 1))
    file.write(lengths.astype("<i4").tobytes())
    file.write(offsets[: lengths.size].astype("<i8").tobytes())
    file.write(np.arange(lengths.size + 1, dtype="<i8").tobytes())


def read_index(path: str | Path) -> tuple[np.ndarray, np.dtype]:
  """Lengths int64 [documents] and dtype of a .idx; UserError if it is damaged or not contiguous."""
  data = Path(path).read_bytes()
  if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
    raise UserError(f"{path} is not a Megatron .idx (wrong magic); prepare the store again")
  _, version, code, num_sequences, num_boundaries = _HEADER.unpack_from(data)
  if version != 1 or code not in DTYPES:
    raise UserError(f"{path}: version {version}, dtype code {code}; readable are 1 and {[*DTYPES]}")
  if len(data) != _HEADER.size + 12 * num_sequences + 8 * num_boundaries:
    raise UserError(f"{path} has {len(data)} bytes, not what its header says; prepare it again")
  lengths = np.frombuffer(data, "<i4", num_sequences, _HEADER.size).astype(np.int64)
  if lengths.size and lengths.min() < 1:
    raise UserError(f"{path} has a document of {lengths.min()} tokens; prepare the store again")
  offsets = np.frombuffer(data, "<i8", num_sequences, _HEADER.size + 4 * num_sequences)
  expected = (np.cumsum(lengths) - lengths) * DTYPES[code].itemsize
  if not np.array_equal(offsets, expected):
    raise UserError(f"{path}: documents are not stored back to back; prepare the store again")
  return lengths, DTYPES[code]


def write_shards(
  folder: Path, split: str, lengths: np.ndarray, pieces: Iterable[np.ndarray], dtype: np.dtype
) -> dict:
  """Writes <split>-00000.bin, .idx and so on; a shard ends with the document that fills it.

  Args:
    lengths: tokens of every document, int64 [documents].
    pieces: the stream in any cut, in order.
  Returns:
    {"sha256": of the stream, however it is cut into shards, "shards": [{"name", "num_documents",
    "num_tokens", "sha256"}]}.
  """
  stored = np.dtype(dtype).newbyteorder("<")
  ends = np.cumsum(lengths)
  _, first = np.unique((ends - 1) // SHARD_TOKENS, return_index=True)
  groups = np.split(np.asarray(lengths, np.int64), first[1:])
  source = _Source(pieces, stored)
  whole, shards = hashlib.sha256(), []
  for number, group in enumerate(groups):
    name, digest = f"{split}-{number:05d}", hashlib.sha256()
    with open(folder / f"{name}.bin", "wb") as file:
      for data in source.take(int(group.sum())):
        file.write(data)
        digest.update(data)
        whole.update(data)
    write_index(folder / f"{name}.idx", group, dtype)
    counts = {"num_documents": len(group), "num_tokens": int(group.sum())}
    shards.append({"name": name, **counts, "sha256": digest.hexdigest()})
  return {"sha256": whole.hexdigest(), "shards": shards}


class _Source:
  """Takes a given number of tokens at a time from pieces of other sizes."""

  def __init__(self, pieces: Iterable[np.ndarray], dtype: np.dtype):
    self._pieces, self._rest = iter(pieces), np.zeros(0, dtype)

  def take(self, count: int) -> Iterable[memoryview]:
    while count:
      if not self._rest.size:
        self._rest = next(self._pieces).astype(self._rest.dtype)
      now, self._rest = self._rest[:count], self._rest[count:]
      count -= now.size
      yield np.ascontiguousarray(now).data.cast("B")


class TokenStream:
  """The tokens of some shards as one array that is sliced, never copied whole.

  `stream[a:b]` is a view of a file where a ... b - 1 lie in one, else a copy of at most b - a
  tokens. `lengths` are those of the documents, int64 [documents].
  """

  def __init__(self, folder: Path, names: Sequence[str]):
    indices = [read_index(folder / f"{name}.idx") for name in names]
    self.lengths = np.concatenate([lengths for lengths, _ in indices])
    self.dtype = indices[0][1]
    sizes = [int(lengths.sum()) for lengths, _ in indices]
    if len({dtype for _, dtype in indices}) != 1:
      raise UserError(f"the shards in {folder} are of several dtypes; prepare the store again")
    for name, size in zip(names, sizes, strict=True):
      num_bytes = (folder / f"{name}.bin").stat().st_size
      if not size or num_bytes != size * self.dtype.itemsize:
        raise UserError(
          f"{folder / name}.bin has {num_bytes} bytes, its .idx says {size} tokens of"
          f" {self.dtype.itemsize}; prepare the store again"
        )
    self._files = [
      np.memmap(folder / f"{name}.bin", dtype, "r", shape=(size,)).view(np.ndarray)
      for name, size, (_, dtype) in zip(names, sizes, indices, strict=True)
    ]
    self._starts = [0, *np.cumsum(sizes).tolist()]

  def __len__(self) -> int:
    return self._starts[-1]

  def at(self, places: np.ndarray) -> np.ndarray:
    """The tokens at these places, in increasing order."""
    edges = np.searchsorted(places, self._starts)
    parts = zip(self._files, self._starts, np.split(places, edges[1:-1]), strict=False)
    return np.concatenate([file[part - first] for file, first, part in parts])

  def sha256(self) -> str:
    """Of the stream, however it is cut into shards; reads all of it."""
    digest = hashlib.sha256()
    for file in self._files:
      digest.update(file.data)
    return digest.hexdigest()

  def range(self) -> tuple[int, int]:
    """(smallest, largest id); reads all of it."""
    return (
      min(int(file.min()) for file in self._files), max(int(file.max()) for file in self._files)
    )  # fmt: skip

  def __getitem__(self, places: slice) -> np.ndarray:
    start, stop, step = places.indices(len(self))
    if step != 1:
      raise IndexError(f"a stream is read forwards and without gaps, not with step {step}")
    stop = max(start, stop)
    shard = min(bisect_right(self._starts, start), len(self._files)) - 1
    first = self._starts[shard]
    if stop <= self._starts[shard + 1]:
      return self._files[shard][start - first : stop - first]
    pieces = []
    while start < stop:
      first, end = self._starts[shard : shard + 2]
      pieces.append(self._files[shard][start - first : stop - first])
      start, shard = end, shard + 1
    return np.concatenate(pieces)
