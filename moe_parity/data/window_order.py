"""Which window comes at which place of a run: a pure function of (seed, epoch, position).

The permutations are Feistel networks over the bits of an index, walked until the result lies in
range, with splitmix64 as the round function: integer arithmetic only, so the order is the same on
every platform and under every NumPy, and any position is reached without the ones before it.
(Feistel 1973; cycle walking: Black and Rogaway 2002; splitmix64: Steele, Lea and Flood 2014.)
"""

import numpy as np

from moe_parity.errors import UserError

_MASK = (1 << 64) - 1
_ROUNDS = 12
_SUBSET, _EPOCH = 1, 2  # what a key is for


def splitmix64(x: np.ndarray) -> np.ndarray:
  """The finaliser of splitmix64, elementwise on uint64."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def key(*parts: int) -> int:
  """64 bits that depend on every part and on their order."""
  state = 0
  for part in parts:
    state = _mix(state ^ _mix(part & _MASK))
  return state


def _mix(x: int) -> int:
  """`splitmix64` of one number."""
  x = (x + 0x9E3779B97F4A7C15) & _MASK
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
  return x ^ (x >> 31)


def permute(index: np.ndarray, size: int, keys: int | np.ndarray) -> np.ndarray:
  """Image of each index in [0, size) under the permutation a key names: int64, elementwise.

  Args:
    keys: one key, or uint64 of the shape of `index`, one for each element.
  """
  if size <= 1:
    return np.zeros_like(index, dtype=np.int64)
  bits = (size - 1).bit_length()
  low = max(1, bits // 2)
  high = max(1, bits - low)
  value = np.array(index, dtype=np.uint64).reshape(-1)
  keys = np.broadcast_to(np.asarray(keys, np.uint64).reshape(-1), value.shape)
  walking = np.arange(value.size)
  while walking.size:
    value[walking] = _feistel(value[walking], high, low, keys[walking])
    walking = walking[value[walking] >= size]
  return value.reshape(np.shape(index)).astype(np.int64)


def _feistel(x: np.ndarray, high: int, low: int, keys: np.ndarray) -> np.ndarray:
  """A bijection of [0, 2^(high + low)); the halves swap widths every round, an even number."""
  for number in range(_ROUNDS):
    left, right = x >> np.uint64(low), x & np.uint64((1 << low) - 1)
    noise = splitmix64(splitmix64(keys ^ np.uint64(_mix(number))) ^ right)
    left = left ^ (noise & np.uint64((1 << high) - 1))
    x = (right << np.uint64(high)) | left
    high, low = low, high
  return x


class Order:
  """The windows of a run under a budget of unique data.

  The budget takes the first `num_unique` windows of one seeded order over all of them, so a smaller
  budget is a prefix of a larger one. Epoch 0 reads them in that order, so runs with different
  budgets agree until the smaller is used up; a later epoch is a new permutation of its windows.
  """

  def __init__(self, num_windows: int, num_unique: int, seed: int):
    if not 1 <= num_unique <= num_windows:
      raise UserError(
        f"a budget of {num_unique} unique windows does not fit a stream of {num_windows}; "
        f"give a budget in 1..{num_windows}, or more data"
      )
    self.num_windows, self.num_unique, self.seed = num_windows, num_unique, seed
    self._subset, self._epochs = key(seed, _SUBSET), key(seed, _EPOCH)

  def windows(self, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start]: the windows at these positions, counted from the start of the run."""
    return self.at(np.arange(start, stop, dtype=np.int64))

  def at(self, positions: np.ndarray) -> np.ndarray:
    """int64: the window at each of these positions."""
    epochs, places = np.divmod(positions, self.num_unique)
    later = epochs > 0
    keys = splitmix64(np.uint64(self._epochs) ^ splitmix64(epochs[later].astype(np.uint64)))
    places[later] = permute(places[later], self.num_unique, keys)
    return permute(places, self.num_windows, self._subset)

  def to_dict(self) -> dict:
    """What names this order; two runs with equal dicts over one stream have the same order."""
    return {"num_windows": self.num_windows, "num_unique": self.num_unique, "seed": self.seed}


def unique_windows(num_unique_tokens: int, num_windows: int, seq_len: int) -> int:
  """Whole windows in a budget of unique tokens, rounded down; 0 tokens means all there are.

  Raises:
    UserError: the budget is under one window, or over what the stream holds.
  """
  if num_windows < 1:
    raise UserError(
      f"the training stream has no whole window of seq_len={seq_len} tokens; "
      f"use a shorter seq_len or more data"
    )
  if num_unique_tokens == 0:
    return num_windows
  if num_unique_tokens < seq_len:
    raise UserError(
      f"num_unique_tokens={num_unique_tokens} is under one window of seq_len={seq_len}; "
      f"raise it to at least {seq_len}"
    )
  budget = num_unique_tokens // seq_len
  if budget > num_windows:
    raise UserError(
      f"num_unique_tokens={num_unique_tokens} needs {budget} windows of {seq_len} tokens, the "
      f"corpus has {num_windows} ({num_windows * seq_len} tokens); lower the budget (reuse=strict "
      f"or epochs), use a corpus with more text, or a tokenizer with a smaller vocabulary"
    )
  return budget
