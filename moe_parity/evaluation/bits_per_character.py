"""Computes bits per character (BPC) and per byte (BPB) of held-out text.

    bits per byte = sum of -ln p(token | tokens before it in its window) / (ln 2 * UTF-8 bytes)

All sums are over everything scored, in float64, with one division at the end: never a mean of
means. Each token of the text is scored once. Separators (begin and end of document) are context
only: they are not scored and have no bytes. Characters are Unicode code points; bytes and
characters are those of the text.

- `document`: one document at a time, after the token that begins documents in training. Windows of
  seq_len score consecutive tokens. The last window of a document starts earlier so that it is full;
  only its new tokens are scored. This is the rolling evaluation of lm-eval's `bits_per_byte`. Use
  it for reported numbers.
- `strided`: the same with windows `stride` apart, each scoring what the one before did not: more
  context a token, seq_len/stride times the work. With stride = seq_len it is `document`.
- `packed`: windows of the token stream as in training, with several documents each; one token of
  forward pass a scored token. For curves during training.

Modes give different numbers: the result states its mode, and no table should mix them.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from moe_parity.data.token_store import Documents, Split
from moe_parity.data.window_order import key, permute
from moe_parity.errors import NotFiniteError, UserError
from moe_parity.planning.config_rules import check_scoring

# (inputs int32 [B, S], targets int32 [B, S], mask bool [B, S]) -> nats [B, S]; one shape throughout
# lets a jitted model compile once. What it returns where the mask is false is ignored.
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
NO_DOCUMENT = -1


def evaluate(
  score: Score,
  split: Split,
  *,
  mode: str = "document",
  seq_len: int,
  batch_sequences: int,
  stride: int = 0,
  max_tokens: int = 0,
  seed: int = 0,
  among: np.ndarray | None = None,
) -> dict:
  """Scores held-out text.

  Args:
    mode: 'document', 'strided' or 'packed'.
    seq_len: targets in a window, the context the model was trained with.
    batch_sequences: rows in a call of `score`; the last call is filled up with masked rows.
    stride: tokens between windows of mode 'strided'.
    max_tokens: text tokens to score, 0 for all. Modes by document take whole documents, each domain
      up to its share of the split and at least one; 'packed' takes whole windows.
    seed: which documents or windows make up `max_tokens`; the same for arms that are compared.
    among: rows of the documents to choose from, for modes by document; None is all.
  Returns:
    {"mode", "seq_len", "stride", "bpc", "bpb", "cross_entropy" (nats a token), "nats",
    "num_tokens", "num_bytes", "num_chars", "num_documents", "by_domain", "macro_bpc", "macro_bpb"
    (means over domains), "documents" (one entry each), "split_documents", "sampled" (whether
    documents or windows were left out)}; with a tokenizer that loses text also "text_lost", what of
    the whole split its ids do not give back: {"num_documents", "num_chars", "num_bytes", "share"}.
    A domain of which packed windows hold only the end of a character has no bits per character: it
    counts in the totals alone.
  Raises:
    UserError: an impossible combination of arguments.
    NotFiniteError: nats that are not finite, so none are ever in a result.
  """
  check_scoring(mode, seq_len, batch_sequences, stride, max_tokens)
  documents = split.documents
  if mode == "packed":
    windows = _some_windows(split.num_windows(seq_len), seq_len, max_tokens, seed)
    rows = _packed_rows(split, windows, seq_len)
    complete = len(windows) == split.num_windows(seq_len)
  else:
    step = stride if mode == "strided" else seq_len
    chosen = choose_documents(documents, max_tokens, seed, among)
    rows = document_rows(split, chosen, seq_len, step)
    complete = len(chosen) == len(documents)
  nats, counted = _accumulate(score, rows, split, (batch_sequences, seq_len), mode == "packed")
  if not counted[2].any():  # characters
    raise UserError(
      f"the {split.name} split has no row of seq_len={seq_len} to score; use mode=document"
    )
  result = summarize(documents, nats, *counted)
  stated = {"mode": mode, "seq_len": seq_len, "stride": stride if mode == "strided" else 0}
  lost = {}
  if split.lost["num_documents"]:
    lost = {"text_lost": split.lost | {"share": split.lost["num_chars"] / split.entry["num_chars"]}}
  return stated | result | lost | {"split_documents": len(documents), "sampled": not complete}


def nats_of_documents(
  score: Score, split: Split, rows: np.ndarray, stride: int, shape: tuple[int, int]
) -> np.ndarray:
  """float64 [rows]: nats of whole documents.

  Args:
    shape: sequences in a call of `score`, and targets in each.
  """
  windows = document_rows(split, rows, shape[1], stride)
  return _accumulate(score, windows, split, shape, False)[0][rows]


def scoring_windows(num_targets: int, seq_len: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """(first, end, scored from) of each window over a document's targets; scored parts tile them."""
  end = min(seq_len, num_targets)
  if end:
    yield 0, end, 0
  while end < num_targets:
    new = min(end + stride, num_targets)
    yield new - seq_len, new, end
    end = new


def choose_documents(
  documents: Documents, max_tokens: int, seed: int, among: np.ndarray | None = None
) -> np.ndarray:
  """Rows of the documents to score, in stream order: every domain up to its share of max_tokens.

  Documents are drawn in a seeded order; one that would pass the domain's share is left out. A
  domain none of whose documents fits gives its shortest. `among`: rows to choose from; None is all.
  """
  lengths, domain_A = documents.num_text_tokens, documents.domain
  among = np.arange(len(documents)) if among is None else among
  total = lengths[among].sum()
  if max_tokens == 0 or total <= max_tokens:
    return among
  chosen: list[int] = []
  for domain in np.unique(domain_A[among]):
    members = among[domain_A[among] == domain]
    left = max_tokens * lengths[members].sum() / total
    drawn = members[permute(np.arange(members.size), members.size, key(seed, int(domain)))]
    taken = []
    for row in drawn:
      if lengths[row] <= left:
        taken.append(int(row))
        left -= lengths[row]
    chosen += taken or [int(members[np.argmin(lengths[members])])]
  return np.array(sorted(chosen), np.int64)


def summarize(
  documents: Documents,
  nats: np.ndarray,
  num_tokens: np.ndarray,
  num_bytes: np.ndarray,
  num_chars: np.ndarray,
) -> dict:
  """The result's totals, domains and documents from sums over each document, [documents]."""
  scored = np.flatnonzero(num_tokens)

  def totals(rows: np.ndarray) -> dict:
    sums = {
      "nats": float(nats[rows].sum()),
      "num_tokens": int(num_tokens[rows].sum()),
      "num_bytes": int(num_bytes[rows].sum()),
      "num_chars": int(num_chars[rows].sum()),
      "num_documents": len(rows),
    }
    bits = sums["nats"] / math.log(2)
    return {"bpc": bits / sums["num_chars"], "bpb": bits / sums["num_bytes"]} | sums

  total = totals(scored)
  by_domain = {
    documents.domains[domain]: totals(members)
    for domain in np.unique(documents.domain[scored])
    if num_chars[members := scored[documents.domain[scored] == domain]].any()
  }
  return {
    **total,
    "cross_entropy": total["nats"] / total["num_tokens"],
    "by_domain": by_domain,
    "macro_bpc": sum(d["bpc"] for d in by_domain.values()) / len(by_domain),
    "macro_bpb": sum(d["bpb"] for d in by_domain.values()) / len(by_domain),
    "documents": [
      {
        "domain": documents.domains[documents.domain[row]],
        "source": documents.sources[documents.source[row]],
        "nats": float(nats[row]),
        "num_tokens": int(num_tokens[row]),
        "num_bytes": int(num_bytes[row]),
        "num_chars": int(num_chars[row]),
      }
      for row in scored
    ],
  }


# A row to score: its inputs, its targets, and the document that each target is in (NO_DOCUMENT
# where it is not scored). Shorter than seq_len where a document is.
_Row = tuple[np.ndarray, np.ndarray, np.ndarray]


def document_rows(split: Split, chosen: np.ndarray, seq_len: int, stride: int) -> Iterator[_Row]:
  """(inputs, targets, document ids) of each window over the chosen documents, in order."""
  for index in chosen:
    text = split.document(int(index)).astype(np.int32)
    line = np.concatenate([np.array([split.tokenizer.bos_id], np.int32), text])
    for first, end, scored in scoring_windows(text.size, seq_len, stride):
      document_ids = np.full(end - first, index, np.int64)
      document_ids[: scored - first] = NO_DOCUMENT
      yield line[first:end], line[first + 1 : end + 1], document_ids


def _packed_rows(split: Split, windows: np.ndarray, seq_len: int) -> Iterator[_Row]:
  starts = split.document_starts
  separators = (split.tokenizer.bos_id, split.tokenizer.eos_id)
  for window in windows:
    (row,) = split.rows(np.array([window]), seq_len)
    positions = np.arange(window * seq_len + 1, (window + 1) * seq_len + 1)
    document_ids = np.searchsorted(starts, positions, side="right") - 1
    document_ids[np.isin(row[1:], separators)] = NO_DOCUMENT
    yield row[:-1], row[1:], document_ids


def _some_windows(num_windows: int, seq_len: int, max_tokens: int, seed: int) -> np.ndarray:
  wanted = math.ceil(max_tokens / seq_len) if max_tokens else num_windows
  if wanted >= num_windows:
    return np.arange(num_windows)
  return np.sort(permute(np.arange(wanted), num_windows, key(seed)))


def _accumulate(
  score: Score,
  rows: Iterator[_Row],
  split: Split,
  shape: tuple[int, int],
  count_by_token: bool,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Nats and (tokens, bytes, characters) scored of each document of the split."""
  documents, pad = split.documents, split.tokenizer.pad_id
  size = len(documents)
  nats, num_tokens = np.zeros(size, np.float64), np.zeros(size, np.int64)
  num_bytes, num_chars = np.zeros(size, np.int64), np.zeros(size, np.int64)
  if count_by_token:
    token_bytes, token_chars = split.tokenizer.token_bytes, split.tokenizer.token_chars
  for batch in itertools.batched(rows, shape[0]):
    inputs, targets = np.full(shape, pad, np.int32), np.full(shape, pad, np.int32)
    document_ids = np.full(shape, NO_DOCUMENT, np.int64)
    for i, (row_inputs, row_targets, row_ids) in enumerate(batch):
      inputs[i, : row_inputs.size], targets[i, : row_inputs.size] = row_inputs, row_targets
      document_ids[i, : row_inputs.size] = row_ids
    mask = document_ids != NO_DOCUMENT
    values = np.asarray(score(inputs, targets, mask), np.float64)
    if values.shape != shape:
      raise ValueError(f"score returned shape {values.shape}, not one value a target {shape}")
    values, scored_ids = values[mask], document_ids[mask]
    if not np.isfinite(values).all():
      row = int(scored_ids[~np.isfinite(values)][0])
      raise NotFiniteError(
        f"document {row} ({documents.sources[documents.source[row]]}) has a loss that is not "
        f"finite; the model diverged, or computes it in too low a precision: lower its learning "
        f"rate, or use --config.model.dtype=float32"
      )
    np.add.at(nats, scored_ids, values)
    np.add.at(num_tokens, scored_ids, 1)
    if count_by_token:
      np.add.at(num_bytes, scored_ids, token_bytes[targets[mask]])
      np.add.at(num_chars, scored_ids, token_chars[targets[mask]])
  if not count_by_token:
    is_scored = num_tokens > 0
    assert np.array_equal(num_tokens[is_scored], documents.num_text_tokens[is_scored])
    num_bytes[is_scored], num_chars[is_scored] = (
      documents.num_bytes[is_scored],
      documents.num_chars[is_scored],
    )
  return nats, (num_tokens, num_bytes, num_chars)
