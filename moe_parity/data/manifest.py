"""manifest.json of a token store: its shape, and the only file names it may give.

Stores come from other people and from buckets. Nothing of a manifest is used before it has the
shape below, and each file in it has one of the names a store's files have: no name can lead out of
the store's folder.
"""

import re
from pathlib import Path

from moe_parity.data import checked_json, storage
from moe_parity.errors import UserError
from moe_parity.fields.table import DOMAIN_NAME
from moe_parity.stored.shape import mismatch

FORMAT = storage.TOKEN_STORE
VERSION = 3
SPLITS = ("train", "validation")
MANIFEST = storage.MANIFEST
_TOTALS = {"num_documents": int, "num_bytes": int, "num_chars": int, "num_tokens": int}
_SPLIT = {
  **_TOTALS,
  "by_domain": {DOMAIN_NAME: _TOTALS},
  "by_origin": [_TOTALS],
  "lost": {"num_documents": int, "num_chars": int, "num_bytes": int},
  "dtype": str,
  "sha256": str,
  "shards": [{"name": str, "num_documents": int, "num_tokens": int}],
  "files": {str: {"size": int, "sha256": str}},
}
_SHAPE = {
  "format": str,
  "version": int,
  "tokenizer": {
    "name": str, "fingerprint": str, "vocab_size": int, "bos_id": int, "eos_id": int, "pad_id": int,
  },
  "origins": [
    {
      "path": str, "domain": str, "files": [{"path": str, "sha256": str}],
      "formats": {str: int}, "num_hidden": int, "stores": [str],
    }
  ],
  "held_out": {"fraction": float, "works": [str], "source": str},
  "duplicates": {"num_documents": int, "num_bytes": int},
  "bad_records": {"count": int, "num_bytes": int, "messages": [str]},
  "splits": {name: _SPLIT for name in SPLITS},
}  # fmt: skip
_AGAIN = "prepare the store again"
_HASH = re.compile("[0-9a-f]{64}")


def read_manifest(location: str | Path) -> dict:
  """The manifest of a store, local or remote, after checking its shape and the names in it.

  Raises:
    UserError: there is none, it is damaged, of another version, or names a file no store has.
  """
  path = storage.join(location, MANIFEST)
  try:
    manifest = checked_json.read(path, {"format?": object, "version?": object}, _AGAIN)
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(
      f"{location} is no token store (no {MANIFEST}); run `moe-parity prepare`"
    ) from None
  if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
    raise UserError(
      f"{path} is {str(manifest.get('format'))[:80]!r} version"
      f" {str(manifest.get('version'))[:20]}; this program reads {FORMAT!r} version {VERSION}:"
      f" {_AGAIN}"
    )
  problem = mismatch(manifest, _SHAPE) or _other_problem(manifest)
  if problem:
    raise UserError(f"{path} is damaged ({problem}); {_AGAIN}")
  return manifest


def files_of(manifest: dict, split: str) -> dict[str, dict]:
  """{file name: {"size", "sha256"}} of a split."""
  return manifest["splits"][split]["files"]


def _other_problem(manifest: dict) -> str:
  """What the shape does not say: names, hashes, and sums that must agree; '' for nothing."""
  for split in SPLITS:
    entry = manifest["splits"][split]
    names = [shard["name"] for shard in entry["shards"]]
    if names != [f"{split}-{number:05d}" for number in range(len(names))] or not names:
      return f"the shards of {split} are named {', '.join(ascii(name[:80]) for name in names[:3])}"
    expected = {f"{name}.{ending}" for name in names for ending in ("bin", "idx")}
    if set(entry["files"]) ^ (expected | {f"{split}.documents.npz"}):
      odd = min(set(entry["files"]) ^ (expected | {f"{split}.documents.npz"}))
      return f"the files of {split} are not those of a store: {odd[:80]!r}"
    hashes = [entry["sha256"], *(file["sha256"] for file in entry["files"].values())]
    if wrong := [text for text in hashes if not _HASH.fullmatch(text)]:
      return f"{wrong[0][:80]!r} is no sha256"
    for total in ("num_documents", "num_tokens"):
      if sum(shard[total] for shard in entry["shards"]) != entry[total]:
        return f"{total} of the shards of {split} do not add up to {entry[total]}"
  return ""
