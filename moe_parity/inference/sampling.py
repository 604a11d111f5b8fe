"""How the next token is drawn from a model's logits: greedy, or by temperature, top-k and top-p."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError

LEAST = 1e-30  # of a temperature: logits over one near the least float32 overflow


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Attributes:
  temperature: logits are divided by it; 0 takes the most likely token, always.
  top_k: draw from the k most likely tokens only; 0 from all.
  top_p: draw from the fewest most likely tokens whose probabilities sum to at least this
    (1904.09751), after temperature and top-k; 1 draws from all.

  Raises:
    UserError: a value outside its range; top-k or top-p where nothing is drawn.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not (self.temperature >= 0 and math.isfinite(self.temperature)):
      raise UserError(
        f"temperature={self.temperature} must be a number of at least 0; use 0 for the most likely"
        " token, 1 for the model's own distribution"
      )
    if 0 < self.temperature < LEAST:
      raise UserError(
        f"temperature={self.temperature} is below {LEAST:g}, where logits overflow; use 0 for the"
        " most likely token"
      )
    if self.top_k < 0:
      raise UserError(f"top_k={self.top_k} is negative; use 0 to draw from all tokens")
    if not 0 < self.top_p <= 1:
      raise UserError(f"top_p={self.top_p} must lie in (0, 1]; use 1 to draw from all tokens")
    if self.temperature == 0 and (self.top_k or self.top_p < 1):
      raise UserError(
        f"top_k={self.top_k}, top_p={self.top_p} with temperature=0, which always takes the most"
        " likely token; set a temperature above 0, or leave them out"
      )

  def check_vocabulary(self, vocab_size: int) -> None:
    """
    Raises:
      UserError: top_k exceeds the vocabulary.
    """
    if self.top_k > vocab_size:
      raise UserError(
        f"top_k={self.top_k} exceeds the vocabulary of {vocab_size} tokens; use 0 to draw from all"
      )


def sample(
  logit_BV: Float[Array, "B V"], key: jax.Array, position_B: Int[Array, " B"], sampling: Sampling
) -> Int[Array, " B"]:
  """The next token of every sequence.

  A draw depends on the key, on the sequence's row and on its position: neither on how many
  other sequences a batch has nor on how long their prompts are.

  Args:
    key: of the whole batch.
    position_B: of the token that is drawn.
  """
  if sampling.temperature == 0:
    return jnp.argmax(logit_BV, axis=-1).astype(jnp.int32)

  def draw(logit_V, row, position):
    own = jax.random.fold_in(jax.random.fold_in(key, row), position)
    value_V, token_V = _candidates(logit_V / sampling.temperature, sampling)
    return token_V[jax.random.categorical(own, value_V)]

  row_B = jnp.arange(logit_BV.shape[0], dtype=jnp.int32)
  return jax.vmap(draw)(logit_BV, row_B, position_B).astype(jnp.int32)


def _candidates(logit_V, sampling: Sampling):
  """Logits and ids of what may be drawn; -inf for what may not. Equal logits in order of ids."""
  size = logit_V.shape[0]
  if not sampling.top_k and sampling.top_p == 1:
    return logit_V, jnp.arange(size, dtype=jnp.int32)
  value_V, token_V = jax.lax.top_k(logit_V, sampling.top_k or size)
  if sampling.top_p < 1:
    probability_V = jax.nn.softmax(value_V)
    before_V = jnp.cumsum(probability_V) - probability_V  # of all more likely tokens
    value_V = jnp.where(before_V < sampling.top_p, value_V, -jnp.inf)
  return value_V, token_V
