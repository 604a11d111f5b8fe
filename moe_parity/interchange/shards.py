"""Safetensors files of bounded size with an index, as Hugging Face lays them out; without torch."""

import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moe_parity import files
from moe_parity.data import checked_json
from moe_parity.errors import UserError
from moe_parity.fields.kinds import show
from moe_parity.interchange.tensors import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
NEEDS_HF = "pip install 'moe_parity[hf]'"


def safetensors_numpy():
  """The module `safetensors.numpy`.

  Raises:
    UserError: it is not installed.
  """
  try:
    import safetensors.numpy
  except ImportError:
    raise UserError(f"the package safetensors is not installed; {NEEDS_HF}") from None
  return safetensors.numpy


def write(
  folder: pathlib.Path, tensors: Sequence[Tensor], read: Callable[[Tensor], np.ndarray], most: int
) -> list[str]:
  """Writes the tensors to files of at most `most` bytes each; a larger tensor has one of its own.

  One file's tensors are in memory at a time. Returns the names of the files.
  """
  library, shards = safetensors_numpy(), _split(tensors, most)
  names = [SINGLE]
  if len(shards) > 1:
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
  for name, shard in zip(names, shards, strict=True):
    with files.replacing(folder / name) as temporary:
      arrays = {tensor.name: read(tensor) for tensor in shard}
      library.save_file(arrays, temporary, metadata={"format": "pt"})
      temporary.chmod(0o644)  # the library lets its owner alone read it
  if len(shards) > 1:
    where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(_size(tensor) for tensor in tensors)
    files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
  return names


def _size(tensor: Tensor) -> int:
  return 4 * int(np.prod(tensor.shape))


def _split(tensors: Sequence[Tensor], most: int) -> list[list[Tensor]]:
  shards: list[list[Tensor]] = [[]]
  size = 0
  for tensor in tensors:
    if shards[-1] and size + _size(tensor) > most:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += _size(tensor)
  return shards


def weight_map(folder: pathlib.Path) -> dict[str, str]:
  """The file that each tensor of a folder is in.

  Raises:
    UserError: no safetensors file, one of the index that is not there or lacks a tensor.
  """
  if not (folder / INDEX).exists():
    if not (folder / SINGLE).exists():
      raise UserError(
        f"{folder} holds neither {SINGLE} nor {INDEX}; give a folder with safetensors files"
        " (torch's .bin files: load them in transformers and save_pretrained)"
      )
    with _opened(folder / SINGLE) as file:
      return dict.fromkeys(file.keys(), SINGLE)
  index = checked_json.read(folder / INDEX, {"weight_map": {str: str}}, "download it again")
  where = index["weight_map"]
  shards = sorted(set(where.values()))
  if (folder / SINGLE).exists() and SINGLE not in shards:
    raise UserError(
      f"{folder} holds {SINGLE} and {INDEX}, which names other files; remove those that are not the"
      " model's (transformers reads the first)"
    )
  for shard in shards:
    if pathlib.PurePath(shard).name != shard or "\0" in shard:
      raise UserError(
        f"{folder / INDEX} names the file {show(shard)}, which is outside of its folder; do not use"
        " files of this origin"
      )
    if not (folder / shard).exists():
      raise UserError(f"{folder} lacks {shard}, one of {len(shards)} shards; download it again")
  return where


def read(folder: pathlib.Path, where: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
  """(name, array in float32) of every tensor, file by file. Widening to float32 rounds nothing.

  Raises:
    UserError: a damaged file, a tensor that its file lacks, of another type, or not finite.
  """
  for shard in sorted(set(where.values())):
    with _opened(folder / shard) as file:
      held = set(file.keys())
      for name in (name for name, file_name in where.items() if file_name == shard):
        if name not in held:
          raise UserError(f"{folder / shard} lacks {name}, which the index says; download it again")
        yield name, _checked(name, file.get_tensor(name))


def _opened(path: pathlib.Path):
  safetensors_numpy()
  import ml_dtypes  # noqa: F401 - gives NumPy the type bfloat16, by which files are read
  import safetensors

  try:
    return safetensors.safe_open(path, framework="np")
  except safetensors.SafetensorError as error:
    raise UserError(f"{path} is damaged ({error}); download or export it again") from None


def _checked(name: str, array: np.ndarray) -> np.ndarray:
  if array.dtype.name not in ("float32", "bfloat16", "float16"):
    raise UserError(
      f"tensor {name} is of type {array.dtype.name}; only float32, bfloat16 and float16 can be held"
      " without a loss: save the model in one of them"
    )
  array = np.asarray(array, np.float32)
  if not np.isfinite(array).all():
    raise UserError(f"tensor {name} holds numbers that are not finite; take another checkpoint")
  return array
