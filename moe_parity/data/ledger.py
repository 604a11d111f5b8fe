"""Which windows a run consumed, how often, in which order: the proof behind "unique tokens".

The loader says what should be read; the ledger records what the train step was given. Its counts
are one number a window, its order a sum over rows of sha256(row, window) modulo 2^256: independent
of batch size, number of hosts and interruptions, different as soon as one row holds another window.
"""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np

from moe_parity.errors import UserError

_MODULUS = 1 << 256


def order_digest(windows: np.ndarray, first_row: int = 0) -> int:
  """Digest of windows at rows first_row, first_row + 1, ...; digests of disjoint rows add up."""
  pack, sha256 = struct.Struct("<QQ").pack, hashlib.sha256
  total = 0
  for row, window in enumerate(np.asarray(windows).tolist(), first_row):
    total += int.from_bytes(sha256(pack(row, window)).digest(), "little")
  return total % _MODULUS


class Ledger:
  """Counts of a run, or of one host's part of it.

  Args:
    num_windows: windows in the stream, `loader.order.num_windows`.
    seq_len: tokens in a window.
    data: what the counts refer to (token file's sha256, order); kept with them.
    host_index, num_hosts: which part of each global batch `update` is given.
  """

  def __init__(
    self,
    num_windows: int,
    seq_len: int,
    data: dict | None = None,
    host_index: int = 0,
    num_hosts: int = 1,
  ):
    self.counts = np.zeros(num_windows, np.uint32)
    self.seq_len, self.data = seq_len, dict(data or {})
    self.host_index, self.num_hosts = host_index, num_hosts
    self.row = 0  # rows of the run recorded by all hosts together
    self.digest = 0

  @classmethod
  def for_loader(cls, loader) -> "Ledger":
    """An empty ledger that remembers the loader's stream and order."""
    data = {
      "split": loader.split.name,
      "sha256": loader.split.fingerprint,
      "store": loader.split.location,
      "order": loader.order.to_dict(),
    }
    return cls(loader.order.num_windows, loader.seq_len, data, loader.host_index, loader.num_hosts)

  def update(self, window: np.ndarray) -> None:
    """Records one batch: this host's windows of the next global batch, in their order."""
    window = np.asarray(window)
    np.add.at(self.counts, window, 1)
    self.digest += order_digest(window, self.row + self.host_index * window.size)
    self.digest %= _MODULUS
    self.row += window.size * self.num_hosts

  @property
  def num_tokens(self) -> int:
    """Tokens seen."""
    return int(self.counts.sum(dtype=np.int64)) * self.seq_len

  @property
  def num_unique_tokens(self) -> int:
    """Tokens of the windows seen at least once."""
    return int(np.count_nonzero(self.counts)) * self.seq_len

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
      **self.data,
    }

  def state(self) -> dict[str, np.ndarray]:
    """Arrays to keep in a checkpoint beside the train state, so that both resume at one step.

    They are copies: a checkpoint written in the background does not see later updates.
    """
    digest = np.frombuffer(self.digest.to_bytes(32, "little"), np.uint8)
    return {"counts": self.counts.copy(), "row": np.array(self.row, np.int64), "digest": digest}

  def restore(self, state: dict[str, np.ndarray]) -> None:
    """Takes over a saved `state`. Raises UserError if it is of another stream."""
    counts = np.asarray(state["counts"])
    if counts.shape != self.counts.shape:
      raise UserError(
        f"the saved ledger covers {counts.size} windows, this run's stream has {self.counts.size}; "
        f"resume with the data the run was started on"
      )
    self.counts = counts.astype(np.uint32)
    self.row = int(state["row"])
    self.digest = int.from_bytes(np.asarray(state["digest"], np.uint8).tobytes(), "little")

  def save(self, path: str | Path) -> None:
    """Writes the ledger as .npz, replacing an older one atomically."""
    path = Path(path)
    meta = {"seq_len": self.seq_len, "data": self.data, "hosts": [self.host_index, self.num_hosts]}
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
      text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
      np.savez_compressed(file, meta=text, **self.state())
    part.replace(path)

  @classmethod
  def load(cls, path: str | Path) -> "Ledger":
    try:
      with np.load(path) as data:
        meta = json.loads(data["meta"].tobytes())
        ledger = cls(data["counts"].size, meta["seq_len"], meta["data"], *meta["hosts"])
        ledger.restore({name: data[name] for name in ("counts", "row", "digest")})
    except FileNotFoundError:
      raise UserError(f"{path} does not exist; a run writes its ledger when it ends") from None
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
      raise UserError(f"{path} is not a readable ledger ({error}); run the arm again") from None
    return ledger


def merge(ledgers: list[Ledger]) -> Ledger:
  """The ledger of a run from those of all its hosts.

  Raises:
    UserError: a host is missing or twice there, or they are not of one run at one step.
  """
  first = ledgers[0]
  hosts = sorted(ledger.host_index for ledger in ledgers)
  if hosts != list(range(first.num_hosts)):
    raise UserError(
      f"ledgers of hosts {hosts} given, {first.num_hosts} hosts took part; give each once"
    )
  for other in ledgers[1:]:
    if (other.row, other.seq_len, _stream(other)) != (first.row, first.seq_len, _stream(first)):
      raise UserError(
        f"ledgers of hosts {first.host_index} and {other.host_index} are not of one run at one "
        f"step (rows {first.row} and {other.row}); collect them at the same step"
      )
  merged = Ledger(first.counts.size, first.seq_len, first.data)
  for ledger in ledgers:
    merged.counts += ledger.counts
    merged.digest = (merged.digest + ledger.digest) % _MODULUS
  merged.row = first.row
  return merged


def _stream(ledger: Ledger) -> dict:
  """What the counts refer to, wherever each host keeps its copy."""
  return {name: value for name, value in ledger.data.items() if name != "store"}
