"""ALiBi as four more channels of queries and keys, for fused attention that takes no bias.

A softmax does not change when a row's constant is added to its scores, so the penalty
-slope (i - j) of query i and key j (Press et al. 2108.12409) may be replaced by slope j: a product
of something a head knows and something a key knows. A slope over the scale of the scores is the sum
of two bfloat16 numbers (to 2^-17 of it), a position the sum of 256 times a byte and a byte, both
exact in bfloat16. Query channels are (high, high, low, low), key channels (256 byte, rest, 256
byte, rest), and the kernel sums the four products in float32.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from moe_parity.planning.attention_choice import NUM_COLUMNS

BYTE = 256


def alibi_columns(
  slope_H: np.ndarray, seq_len: int, scale: float
) -> tuple[Float[np.ndarray, "H 4"], Float[np.ndarray, "S 4"]]:
  """Channels of the queries of each head and of the key at each position; their product times
  `scale` is slope times position."""
  exact = np.asarray(slope_H, np.float64) / scale
  high = exact.astype(jnp.bfloat16).astype(np.float64)
  low = exact - high
  position = np.arange(seq_len, dtype=np.float64)
  rest = position % BYTE
  byte = position - rest
  return np.stack([high, high, low, low], -1), np.stack([byte, rest, byte, rest], -1)


def append_columns(
  q_BSHQ: Float[Array, "B S H Q"],
  k_BSNQ: Float[Array, "B S N Q"],
  slope_H: np.ndarray | None,
  scale: float,
  multiple: int,
) -> tuple[Float[Array, "B S H W"], Float[Array, "B S N W"]]:
  """Queries and keys with ALiBi's columns, padded with zeros to a multiple of `multiple` channels.

  Args:
    slope_H: None for no columns.
    scale: what the kernel multiplies scores by.
  """
  S, Q = q_BSHQ.shape[1], q_BSHQ.shape[3]
  width = -(-(Q + (0 if slope_H is None else NUM_COLUMNS)) // multiple) * multiple
  q_BSHW, k_BSNW = pad_channels(q_BSHQ, width), pad_channels(k_BSNQ, width)
  if slope_H is None:
    return q_BSHW, k_BSNW
  q_H4, k_S4 = alibi_columns(slope_H, S, scale)
  # An addition, which fuses with the padding; a concatenation would be a copy.
  q_BSHW += jnp.asarray(_behind(q_H4, Q, width)[None, None], q_BSHQ.dtype)
  k_BSNW += jnp.asarray(_behind(k_S4, Q, width)[None, :, None], k_BSNQ.dtype)
  return q_BSHW, k_BSNW


def pad_channels(x_BSHQ: Float[Array, "B S H Q"], width: int) -> Float[Array, "B S H W"]:
  """Zeros up to `width` channels a head."""
  return jnp.pad(x_BSHQ, ((0, 0),) * 3 + ((0, width - x_BSHQ.shape[3]),))


def _behind(columns: np.ndarray, start: int, width: int) -> np.ndarray:
  """Rows of zeros of `width` channels with `columns` from channel `start` on."""
  full = np.zeros((len(columns), width), np.float32)
  full[:, start : start + NUM_COLUMNS] = columns
  return full
