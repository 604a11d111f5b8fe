"""A corpus and a tokenizer to the files of a store: resumable, the same bytes however it is made.

Three readings of the corpus: `scan` (digests, duplicates, splits), the tokenizer's training text,
and the tokens. Documents keep the order of the corpus: batches are shuffled by window and a budget
of unique data is a seeded subset of windows, so nothing is gained by shuffling here, while
neighbors in a window stay of one kind.
"""

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from moe_parity import files
from moe_parity.data import corpus, storage
from moe_parity.data import tokenizer as tokenizers
from moe_parity.data.bpe_training import train_bpe, vocab_size_of
from moe_parity.data.corpus import BUILTIN, Source
from moe_parity.data.encode import CorpusReader, Progress, encode, join, split_parts
from moe_parity.data.formats import format_of
from moe_parity.data.manifest import FORMAT, MANIFEST, SPLITS, VERSION
from moe_parity.data.scan import DROPPED, TRAIN, VALIDATION, HeldOut, Scan, scan
from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError

# Text a BPE is trained on: twice that gains under 0.5 % bytes a token.
TOKENIZER_BYTES = 100_000_000


def work_folder(folder: Path) -> Path:
  """Where a store is made before it appears."""
  return folder.parent / f".{folder.name}.work"


def build(
  folder: Path,
  inputs: dict,
  sources: Sequence[Source],
  spec: str,
  rule: HeldOut,
  max_bad_records: int,
  workers: int,
  progress: Progress | None,
  allow_lossy: bool = False,
) -> None:
  """Fills `folder`, which appears with all its files or not at all; arguments as for `prepare`.

  A killed build resumes from its work folder where the inputs are the same.
  """
  work = work_folder(folder)
  _claim(work, inputs)
  report = progress or (lambda stage, done, total: None)
  if (work / "scan.npz").is_file():
    table = Scan.load(work / "scan.npz")
    if table.bad_records > max_bad_records:
      raise UserError(
        f"{table.bad_messages[0]}; bad records allowed: {max_bad_records}, found: "
        f"{table.bad_records}; mend the file or raise max_bad_records"
      )
  else:
    table = scan(sources, rule, max_bad_records, lambda done: report("read", done, 0))
    table.save(work / "scan.npz")
  num_bytes = int(table.num_bytes[table.split != DROPPED].sum())
  report("read", num_bytes, num_bytes)
  documents = CorpusReader(sources, rule, table)
  tokenizer = _tokenizer(spec, work, documents, report)
  parts = split_parts(table)
  encode(work, parts, documents, tokenizer, workers or os.cpu_count() or 1, report, allow_lossy)
  done = work / "store"
  shutil.rmtree(done, ignore_errors=True)
  done.mkdir()
  tokenizer.save(done / "tokenizer.json")
  report("write", 0, num_bytes)
  splits = {
    name: join(work, done, name, [p for p in parts if p.split == split], table, tokenizer)
    for name, split in zip(SPLITS, (TRAIN, VALIDATION), strict=True)
  }
  manifest = _manifest(sources, rule, table, tokenizer, splits, inputs)
  report("write", num_bytes, num_bytes)
  (done / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
  (done / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n", "utf-8")
  os.rename(done, folder)


def _claim(work: Path, inputs: dict) -> None:
  """The work folder of these inputs; leftovers of other inputs are removed."""
  record = work / "inputs.json"
  if not record.is_file() or record.read_text() != json.dumps(inputs):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    record.write_text(json.dumps(inputs))


def _tokenizer(spec: str, work: Path, documents: CorpusReader, report: Progress) -> Tokenizer:
  if spec == "bytes":
    return tokenizers.byte_tokenizer()
  if not spec.startswith("bpe:"):
    return tokenizers.load(spec)
  saved = work / "tokenizer.json"
  if not saved.is_file():
    wanted = _sample(documents.table)
    total = int(documents.table.num_bytes[wanted].sum())
    trained = train_bpe(_texts(documents, wanted, total, report), vocab_size_of(spec))
    report("train tokenizer", total, total)
    with files.replacing(saved) as temporary:
      trained.save(temporary)
  tokenizer = tokenizers.load(saved)
  tokenizer.name = spec
  return tokenizer


def _sample(table: Scan) -> np.ndarray:
  """Training documents chosen by hash, about TOKENIZER_BYTES in all: bool [documents]."""
  train = table.split == TRAIN
  share = TOKENIZER_BYTES / max(1, int(table.num_bytes[train].sum()))
  place = np.ascontiguousarray(table.digest[:, 8:]).view("<u8").ravel() / 2.0**64
  wanted = train & (place < share)
  return wanted if wanted.any() else train


def _texts(
  documents: CorpusReader, wanted: np.ndarray, total: int, report: Progress
) -> Iterator[str]:
  done = 0
  for row, document in documents.read(wanted):
    yield document.text[: max(1, 2 * TOKENIZER_BYTES - done)]
    done += int(documents.table.num_bytes[row])
    report("train tokenizer", done, total)
    if done >= 2 * TOKENIZER_BYTES:  # a few documents may hold far more than their share
      return


def _manifest(
  sources: Sequence[Source],
  rule: HeldOut,
  table: Scan,
  tokenizer: Tokenizer,
  splits: dict,
  inputs: dict,
) -> dict:
  dropped = table.split == DROPPED
  origins = zip([*sources, *rule.sources(sources)], inputs["files"], strict=True)
  return {
    "format": FORMAT,
    "version": VERSION,
    "tokenizer": {
      "name": tokenizer.name,
      "fingerprint": tokenizer.fingerprint,
      "vocab_size": tokenizer.vocab_size,
      "bos_id": tokenizer.bos_id,
      "eos_id": tokenizer.eos_id,
      "pad_id": tokenizer.pad_id,
    },
    "origins": [_origin(source, before) for source, before in origins],
    "held_out": asdict(rule),
    "duplicates": {
      "num_documents": int(dropped.sum()),
      "num_bytes": int(table.num_bytes[dropped].sum()),
    },
    "bad_records": {
      "count": table.bad_records,
      "num_bytes": table.bad_bytes,
      "messages": list(table.bad_messages),
    },
    "splits": splits,
  }


def _origin(source: Source, before: list[dict]) -> dict:
  """A source and its files by content: what the manifest vouches for.

  Args:
    before: `corpus.content_of` the source when the build began.
  Raises:
    UserError: a file has changed since.
  """
  content = corpus.content_of(source)
  for old, new in itertools.zip_longest(before, content):
    if old != new:
      path = (new or old)["path"]
      raise UserError(f"{path} changed while it was being prepared; prepare again")
  if source.path == BUILTIN:
    return {**source.to_dict(), "files": content, "formats": {}, "num_hidden": 0, "stores": []}
  files = [
    file if "sha256" in file
    else {"path": file["path"], "bytes": file["bytes"], "sha256": storage.sha256_of(file["path"])}
    for file in content
  ]  # fmt: skip
  left_out = corpus.listing(source)
  return {
    **source.to_dict(),
    "files": files,
    "formats": dict(Counter(format_of(file["path"], source.format) for file in files)),
    "num_hidden": left_out.num_hidden,
    "stores": left_out.stores,
  }
