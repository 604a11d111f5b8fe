"""Which windows a run consumed, how often, in which order: the proof behind "unique tokens".

The loader says what should be read; the ledger records what the train step was given. Its counts
are one number a window, its order a sum over rows of sha256(row, window) modulo 2^256: independent
of batch size, number of hosts and interruptions, different as soon as one row holds another window.

On many hosts each notes the rows of its own part of a batch; `collect` brings the notes together,
so that every host has the ledger of the whole run before it is saved.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from moe_parity import files
from moe_parity.data import checked_json
from moe_parity.data.checked_npz import read_arrays
from moe_parity.errors import UserError
from moe_parity.fields.table import DOMAIN_NAME

_MODULUS = 1 << 256
COLUMNS = ("num_examples", "num_scored_tokens")  # of windows of chats


def order_digest(windows: np.ndarray, first_row: int = 0) -> int:
  """Digest of windows at rows first_row, first_row + 1, ...; digests of disjoint rows add up."""
  pack, sha256 = struct.Struct("<QQ").pack, hashlib.sha256
  total = 0
  for row, window in enumerate(np.asarray(windows).tolist(), first_row):
    total += int.from_bytes(sha256(pack(row, window)).digest(), "little")
  return total % _MODULUS


class BudgetOverrun(UserError):
  """A run was about to see data beyond what it was planned to see."""


class Ledger:
  """Counts of a run.

  Args:
    num_windows: windows in the stream, `loader.order.num_windows`.
    seq_len: tokens in a window.
    data: what the counts refer to (token file's sha256, order); kept with them.
    domain_ids: the group of each window, in a mixture; data["order"]["groups"] names them.
    unique_budget: windows of each group (of all, without a mixture) the run may see, or None.
    max_tokens: tokens the run may see; None is no bound.
    columns: further counts of each window (examples, scored tokens), int [num_windows] each;
      kept with the counts.
    host_index, num_hosts: which part of each global batch `update` is given.
  """

  def __init__(
    self,
    num_windows: int,
    seq_len: int,
    data: dict | None = None,
    *,
    domain_ids: np.ndarray | None = None,
    unique_budget: Sequence[int] | None = None,
    max_tokens: int | None = None,
    columns: dict[str, np.ndarray] | None = None,
    host_index: int = 0,
    num_hosts: int = 1,
  ):
    self.columns = columns or {}
    self.counts = np.zeros(num_windows, np.uint32)
    self.seq_len, self.data, self.domain_ids = seq_len, dict(data or {}), domain_ids
    self.host_index, self.num_hosts = host_index, num_hosts
    self.row = 0  # rows of the run given to `update` by all hosts together
    self.digest = 0
    self._budget = None if unique_budget is None else np.asarray(unique_budget)
    self._max_tokens = max_tokens
    self._unique = np.zeros(
      1 if domain_ids is None else len(self.data["order"]["groups"]), np.int64
    )
    self._notes: list[np.ndarray] = []  # of this host, not yet collected

  @classmethod
  def for_loader(cls, loader) -> "Ledger":
    """An empty ledger that remembers the loader's stream and order, and holds it to its budget."""
    order = loader.order
    data = {
      "split": loader.split.name,
      "sha256": loader.split.fingerprint,
      "store": loader.split.location,
      "order": order.to_dict(),
    }
    domain_ids = getattr(order, "domain_ids", None)
    return cls(
      order.num_windows,
      loader.seq_len,
      data,
      domain_ids=domain_ids,
      unique_budget=[order.num_unique] if domain_ids is None else order.unique_by_group,
      max_tokens=loader.num_tokens,
      columns=getattr(loader.split, "columns", None),
      host_index=loader.host_index,
      num_hosts=loader.num_hosts,
    )

  def update(self, window: np.ndarray) -> None:
    """Records one batch: this host's windows of the next global batch, in their order.

    Call it before the step that trains on them.

    Raises:
      BudgetOverrun: with them the run has seen more tokens than it may, or more unique ones; the
        ledger is as before. Unique tokens of many hosts are checked when they are collected.
    """
    window = np.asarray(window)
    after = (self.row + window.size * self.num_hosts) * self.seq_len
    if self._max_tokens is not None and after > self._max_tokens:
      raise BudgetOverrun(
        f"the next step would make {after:,} tokens seen, the plan allows {self._max_tokens:,};"
        " its batch or its steps are not as planned"
      )
    if self.num_hosts == 1:
      self._record(window, self.row)
    else:
      self._notes.append(window)
    self.row += window.size * self.num_hosts

  def collect(self, gather: Callable[[np.ndarray], np.ndarray]) -> None:
    """Brings what all hosts noted since the last time into the ledger of each of them.

    Call it on every host after the same step, before `state`, `summary` or `save`.

    Args:
      gather: an array of this host -> those of all hosts, in their order on a new first axis, such
        as `jax.experimental.multihost_utils.process_allgather`. It is given int32 [steps, b].
    """
    if self._notes:
      notes = np.asarray(gather(np.stack(self._notes).astype(np.int32)))  # [hosts, steps, b]
      window = notes.transpose(1, 0, 2).reshape(-1)
      self._record(window, self.row - window.size)
      self._notes = []

  def _record(self, window: np.ndarray, first_row: int) -> None:
    new = np.unique(window[self.counts[window] == 0])
    groups = np.zeros(new.size, np.int64) if self.domain_ids is None else self.domain_ids[new]
    unique = self._unique + np.bincount(groups, minlength=self._unique.size)
    if self._budget is not None and (unique > self._budget).any():
      group = int(np.argmax(unique - self._budget))
      name = "" if self.domain_ids is None else f" of {self.data['order']['groups'][group]!r}"
      raise BudgetOverrun(
        f"the next step would make {unique[group] * self.seq_len:,} unique tokens{name} seen, the"
        f" plan allows {self._budget[group] * self.seq_len:,}; the order of the data is not as"
        " planned"
      )
    self._unique = unique
    np.add.at(self.counts, window, 1)
    self.digest = (self.digest + order_digest(window, first_row)) % _MODULUS

  @property
  def num_tokens(self) -> int:
    """Tokens seen."""
    return int(self.counts.sum(dtype=np.int64)) * self.seq_len

  @property
  def num_unique_tokens(self) -> int:
    """Tokens of the windows seen at least once."""
    return int(np.count_nonzero(self.counts)) * self.seq_len

  def by_domain(self) -> dict[str, dict]:
    """Seen and unique tokens of the windows of each domain of a mixture; {} without one."""
    if self.domain_ids is None:
      return {}
    names = self.data["order"]["groups"]
    seen = np.bincount(self.domain_ids, weights=self.counts, minlength=len(names))
    unique = np.bincount(self.domain_ids[self.counts > 0], minlength=len(names))
    return {
      name: {
        "num_tokens": int(seen[i]) * self.seq_len,
        "num_unique_tokens": int(unique[i]) * self.seq_len,
        "epochs": float(seen[i] / unique[i]) if unique[i] else 0.0,
      }
      for i, name in enumerate(names)
    }

  def by_column(self) -> dict[str, int]:
    """What was seen of each of `columns`, repeats included; {} without any."""
    return {name: int(np.dot(self.counts, column)) for name, column in self.columns.items()}

  def summary(self) -> dict:
    """Counts for people and for the certificate."""
    seen = self.counts[self.counts > 0]
    return {
      "num_tokens": self.num_tokens,
      "num_unique_tokens": self.num_unique_tokens,
      "num_windows_seen": int(seen.size),
      "epochs": float(seen.mean()) if seen.size else 0.0,
      "min_epochs": int(seen.min()) if seen.size else 0,
      "max_epochs": int(seen.max()) if seen.size else 0,
      "num_rows": self.row,
      "order_sha256": f"{self.digest:064x}",
      "by_domain": self.by_domain(),
      **self.by_column(),
      **self.data,
    }

  def state(self) -> dict[str, np.ndarray]:
    """Arrays to save in a checkpoint with the train state, so that both resume at one step.

    They are copies: a checkpoint written in the background does not see later updates.
    """
    assert not self._notes, "collect before saving: the rows of other hosts are missing"
    digest = np.frombuffer(self.digest.to_bytes(32, "little"), np.uint8)
    return {"counts": self.counts.copy(), "row": np.array(self.row, np.int64), "digest": digest}

  def restore(self, state: dict[str, np.ndarray]) -> None:
    """Takes over a saved `state`, on any number of hosts.

    Raises:
      UserError: it is of another stream.
    """
    counts = np.asarray(state["counts"])
    if counts.shape != self.counts.shape:
      raise UserError(
        f"the saved ledger covers {counts.size} windows, this run's stream has {self.counts.size}; "
        f"resume with the data the run was started on"
      )
    self.counts = counts.astype(np.uint32)
    self.row = int(state["row"])
    self.digest = int.from_bytes(np.asarray(state["digest"], np.uint8).tobytes(), "little")
    seen = np.flatnonzero(self.counts)
    groups = np.zeros(seen.size, np.int64) if self.domain_ids is None else self.domain_ids[seen]
    self._unique = np.bincount(groups, minlength=self._unique.size)

  def save(self, path: str | Path) -> None:
    """Writes the ledger as .npz, replacing an older one atomically."""
    meta = {"seq_len": self.seq_len, "data": self.data}
    arrays = self.state() | ({} if self.domain_ids is None else {"domain_ids": self.domain_ids})
    arrays |= self.columns
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    files.write_npz(path, meta=text, **arrays)

  @classmethod
  def load(cls, path: str | Path) -> "Ledger":
    """A saved ledger, to read: it is held to no budget.

    Raises:
      UserError: there is none, or it is damaged.
    """
    again = "run the arm again"
    state = ("counts", "row", "digest")
    try:
      optional = ("domain_ids", "labels", *COLUMNS)
      data = read_arrays(path, ("meta", *state), again, optional)
    except FileNotFoundError:
      raise UserError(f"{path} does not exist; a run writes its ledger when it ends") from None
    meta = checked_json.parse(data["meta"].tobytes(), _META, str(path), again)
    domain_ids = data.get("domain_ids", data.get("labels"))  # `labels` until November 2026
    if problem := _problem(data, domain_ids, meta["data"]):
      raise UserError(f"{path} is damaged ({problem}); {again}")
    columns = {name: data[name] for name in COLUMNS if name in data}
    ledger = cls(
      data["counts"].size, meta["seq_len"], meta["data"], domain_ids=domain_ids, columns=columns
    )
    ledger.restore({name: data[name] for name in state})
    return ledger


_META = {
  "seq_len": int,
  "data": {
    "split?": str, "sha256?": str, "store?": str,
    "order?": {
      "num_windows": int, "num_unique": int, "seed": int, "groups?": [DOMAIN_NAME],
      "shares?": [int], "unique_by_group?": [int],
    },
  },
}  # fmt: skip


def _problem(data: dict[str, np.ndarray], domain_ids: np.ndarray | None, named: dict) -> str:
  """What is wrong with the arrays of a ledger; '' for nothing."""
  counts, row, digest = (data[name] for name in ("counts", "row", "digest"))
  if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts.size and counts.min() < 0):
    return "counts are not integers of at least 0"
  if row.shape != () or row.dtype.kind not in "iu" or row < 0:
    return "row is no integer of at least 0"
  if digest.shape != (32,) or digest.dtype != np.uint8:
    return "digest is not 32 bytes"
  for name in set(COLUMNS) & set(data):
    if data[name].shape != counts.shape or data[name].dtype.kind not in "iu":
      return f"{name} does not give an integer for every window"
  order = named.get("order") or {"num_windows": counts.size}
  groups = order.get("groups")
  if order["num_windows"] != counts.size:
    return f"its order is over {order['num_windows']} windows, it counts {counts.size}"
  lists = [len(order.get(name) or ()) for name in ("shares", "unique_by_group")]
  if groups and (domain_ids is None or lists != [len(groups)] * 2):
    return "its order does not give shares, unique windows and windows of every domain"
  if domain_ids is None:
    return ""
  if not groups or domain_ids.shape != counts.shape or domain_ids.dtype.kind not in "iu":
    return "domain_ids do not name a domain for every window"
  if domain_ids.size and not 0 <= domain_ids.min() <= domain_ids.max() < len(groups):
    return "domain_ids are out of range"
  return ""
