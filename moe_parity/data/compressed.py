"""Bytes and lines of a file, plain or compressed; a file that breaks off is an error.

Every member of an archive is read to its own end mark and checksum. Python's xz and bz2 readers
take damage behind the first member for the end of the file, so members are walked here.
"""

import bz2
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from moe_parity.data.formats import compression_of
from moe_parity.data.storage import import_optional, open_binary

_CHUNK_BYTES = 1 << 18
_MAGIC = {
  b"\x1f\x8b": "gzip",
  b"\xfd7zXZ\x00": "xz",
  b"\x28\xb5\x2f\xfd": "zstd",
  b"BZh91AY&SY": "bzip2",
}


class DamagedFileError(Exception):
  """The bytes end too early or contradict their checksum: how much is lost is not known."""


def chunks(path: str) -> Iterator[bytes]:
  """The decompressed bytes of a file, in pieces.

  The ending of the name decides, or where it names no compression, the first bytes.

  Raises:
    DamagedFileError: nothing in the file, damage, or an archive without its end.
  """
  with open_binary(path) as raw:
    stream = _raw_chunks(raw)
    first = next(stream, b"")
    if not first:
      raise DamagedFileError("it is empty (0 bytes)")
    kind = compression_of(path) or next((k for m, k in _MAGIC.items() if first.startswith(m)), "")
    whole = itertools.chain([first], stream)
    yield from _members(whole, *_decoder(kind)) if kind else whole


def lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
  r"""Lines with their b"\n"; the last one without it where the file ends without it."""
  rest: list[bytes] = []
  for piece in pieces:
    first, *others = piece.split(b"\n")
    rest.append(first)
    for other in others:
      yield b"".join(rest) + b"\n"
      rest = [other]
  if last := b"".join(rest):
    yield last


def _raw_chunks(raw: Any) -> Iterator[bytes]:
  while True:
    try:
      chunk = raw.read(_CHUNK_BYTES)
    except OSError as error:
      raise DamagedFileError(str(error)) from None
    if not chunk:
      return
    yield chunk


def _decoder(kind: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
  """(what makes a decoder of one member, the errors it raises on damage)."""
  if kind == "zstd":
    zstandard = import_optional("zstandard", "zstandard", "reading .zst files")
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    return decompressor.decompressobj, (zstandard.ZstdError,)
  if kind == "gzip":
    return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
  if kind == "xz":
    return lzma.LZMADecompressor, (lzma.LZMAError, EOFError)
  return bz2.BZ2Decompressor, (OSError, EOFError)


def _members(
  stream: Iterator[bytes], new: Callable[[], Any], errors: tuple[type[Exception], ...]
) -> Iterator[bytes]:
  decoder, inside, num_members = new(), False, 0
  for chunk in stream:
    while chunk:
      if not inside and num_members:
        chunk = chunk.lstrip(b"\0")  # padding between members and behind the last
        if not chunk:
          break
      inside = True
      try:
        data = decoder.decompress(chunk)
      except errors as error:
        raise DamagedFileError(str(error)) from None
      if data:
        yield data
      chunk = b""
      if decoder.eof:
        chunk, decoder, inside = decoder.unused_data, new(), False
        num_members += 1
  if inside:
    raise DamagedFileError("the archive ends before its end mark")
