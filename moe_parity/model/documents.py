"""Where documents begin inside a row, for models whose attention must not cross into the next.

A row is a cut out of the stream `bos text eos bos text eos ...`, or `text eos text eos ...` where
a vocabulary has one separator, which then both ends a document and begins the next. What a model
needs to keep documents apart follows from the tokens alone, so it is derived where it is used, on
the device: nothing more to load, move or shard.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Documents:
  """How documents are marked in the stream.

  Attributes:
    begin_id: token that stands before a document's text: the first a model is shown of it.
    end_id: token that stands after it; may be the same.
  """

  begin_id: int
  end_id: int

  def number(self, inputs_BS: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Which document of its row each position is in, counted from the one the row begins in.

    A position may attend to positions of its own number only. Positions need not be counted anew:
    both ALiBi and rotary scores depend on the distance of two positions, never on where they are.
    """
    return jnp.cumsum(inputs_BS == self.begin_id, axis=1, dtype=jnp.int32)

  def scored(self, targets_BS: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Which targets count in the loss: all but a token that begins a document after another that
    ended one. Nothing the position may attend to says anything about it, and it is always the same.

    The end of a document is scored: its text tells when it comes. With one separator every target
    is one of these or text, so all are scored. What is not scored is still a token that a run has
    seen: D counts what is processed.
    """
    if self.begin_id == self.end_id:
      return jnp.ones(targets_BS.shape, bool)
    return targets_BS != self.begin_id


def documents_of(tokenizer, cross_documents: bool) -> Documents | None:
  """How a model tells apart the documents that a tokenizer marked; None where it need not."""
  return None if cross_documents else Documents(tokenizer.bos_id, tokenizer.eos_id)
