"""Document boundaries inside a packed sequence, for attention that must not cross them.

A sequence is a window of the stream `bos text eos bos text eos ...`, or of `text eos text eos ...`
where a vocabulary has one separator, which then both ends a document and begins the next. Document
ids and the loss mask follow from the tokens alone, so they are computed on the device where they
are needed: nothing more to load or to shard.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

NOT_SCORED = -1  # a target of packed chats that the loss leaves out


@dataclasses.dataclass(frozen=True)
class DocumentSeparators:
  """The token ids that separate documents in the stream.

  Attributes:
    begin_id: the token before a document's text, the first that a model reads of it.
    end_id: the token after it; may be the same.
  """

  begin_id: int
  end_id: int

  def document_ids(self, inputs_BS: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Which document of its row each position is in; the row's first tokens are in document 0 or 1.

    A position attends to positions of its own document only. Positions need not restart: ALiBi and
    rotary scores depend on the distance of two positions only.
    """
    return jnp.cumsum(inputs_BS == self.begin_id, axis=1, dtype=jnp.int32)

  def loss_mask(self, targets_BS: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Which targets count in the loss: all but `begin_id` where it always follows `end_id`.

    Such a target carries no information. The end of a document counts: its text predicts it. With
    one separator all targets count. A masked token is still one that a run has seen: D counts
    processed tokens.
    """
    if self.begin_id == self.end_id:
      return jnp.ones(targets_BS.shape, bool)
    return targets_BS != self.begin_id


@dataclasses.dataclass(frozen=True)
class ChatSeparators(DocumentSeparators):
  """Chats packed into rows: each is a document, and rows state which targets count.

  `begin_id` begins a chat and occurs nowhere else in one; `end_id` ends every turn of an assistant.
  """

  def loss_mask(self, targets_BS: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Targets that are token ids; NOT_SCORED stands for those that are context or padding."""
    return targets_BS >= 0


def document_separators(tokenizer, cross_documents: bool) -> DocumentSeparators | None:
  """A tokenizer's separators; None where attention crosses documents."""
  return None if cross_documents else DocumentSeparators(tokenizer.bos_id, tokenizer.eos_id)
