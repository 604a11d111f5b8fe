"""A model that continues sequences of tokens: one jitted prefill, one jitted decode step.

Prompts of one batch may differ in length: they begin at position 0 and are padded behind. The
prefill computes all positions of all prompts at once and fills the cache of keys and values; a
decode step computes one token a sequence. The forward pass is the one a model is trained with
(`model/transformer.py`), without dropped assignments: a token's experts cannot depend on what
other tokens of a batch chose.

Shapes are rounded up, so that few programs are compiled: positions to ROUND, sequences to the
number of devices.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_parity.errors import UserError
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.inference.sampling import Sampling, sample
from moe_parity.model.documents import DocumentSeparators
from moe_parity.model.transformer import Cache, abstract_model
from moe_parity.sharding import mesh as meshes

ROUND = 128  # positions; what a TPU attention kernel needs a prompt to be a multiple of


class State(NamedTuple):
  """Sequences on their way.

  Attributes:
    cache: of all tokens but the newest.
    token_B: the newest; drawn and not yet fed back.
    is_finite: whether the logits it was drawn from are numbers.
  """

  cache: Cache
  token_B: Int[Array, " B"]
  is_finite: Bool[Array, ""]


class Generator:
  """A model and the two programs (see the module)."""

  def __init__(
    self,
    model: InferenceModel,
    *,
    num_positions: int,
    num_ids: int = 0,
    documents: DocumentSeparators | None = None,
  ):
    """
    Args:
      num_positions: the most a prompt and what follows it may take together.
      num_ids: ids of the tokenizer; the model's further ones are never drawn. 0: all.
      documents: how documents are separated, for a model whose attention does not cross them.
    Raises:
      UserError: a tokenizer of more ids than the model has.
    """
    self._model, self.num_positions, self.documents = model, num_positions, documents
    largest = model.architecture.vocab_size
    self.vocab_size = num_ids or largest
    if self.vocab_size > largest:
      raise UserError(
        f"the tokenizer has {num_ids} ids and the model's vocabulary {largest}; use the tokenizer"
        " that the run was trained with"
      )
    self._decode_graph = abstract_model(
      model.architecture, dataclasses.replace(model.options, is_decoding=True)
    )[0]
    everywhere = model.replicated
    out = {} if everywhere is None else {"out_shardings": State(None, everywhere, everywhere)}
    statics = ("num_slots", "sampling")
    self._prefill = jax.jit(self._prefill_step, static_argnames=statics, **out)
    self._decode = jax.jit(
      self._decode_step, static_argnames="sampling", donate_argnames="cache", **out
    )

  def generate(
    self,
    prompts: Sequence[np.ndarray],
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    seed: int = 0,
  ) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt, int32 [prompts], `max_tokens` times.

    Continues after the end of a document: the caller stops iterating when it has enough. The next
    step is computed while the caller processes a step's tokens.

    Raises:
      UserError: before anything is compiled: an empty prompt, ids that are not in the vocabulary,
        more positions than there are, a sampling that does not fit. On the way: logits that are not
        finite.
    """
    self.check(prompts, max_tokens, sampling, seed)
    lengths = [len(prompt) for prompt in prompts]
    num_slots = self._rounded(max(lengths) + max_tokens)
    num_inputs = min(self._rounded(max(lengths)), num_slots)
    inputs_BS = np.zeros((len(prompts), num_inputs), np.int32)
    for row, prompt in enumerate(prompts):
      inputs_BS[row, : len(prompt)] = prompt
    return self._steps(
      inputs_BS, np.array(lengths, np.int32), max_tokens, num_slots, sampling, seed
    )

  def check(
    self, prompts: Sequence[np.ndarray], max_tokens: int, sampling: Sampling, seed: int
  ) -> None:
    """See `generate`."""
    sampling.check_vocabulary(self.vocab_size)
    if not 0 <= seed < 2**32:
      raise UserError(f"seed={seed} must lie in 0..{2**32 - 1}")
    if max_tokens < 1:
      raise UserError(f"max_tokens={max_tokens} asks for nothing; use 1 or more")
    if not prompts:
      raise UserError("there is no prompt; give at least one")
    for number, prompt in enumerate(prompts, 1):
      if not len(prompt):
        raise UserError(f"prompt {number} has no token; begin it with the token that begins a text")
      if min(prompt) < 0 or max(prompt) >= self.vocab_size:
        bad = next(int(i) for i in prompt if not 0 <= i < self.vocab_size)
        raise UserError(
          f"prompt {number} holds id {bad}, and the vocabulary is 0..{self.vocab_size - 1}; use the"
          " tokenizer that the run was trained with"
        )
      room = self.num_positions - len(prompt)
      if max_tokens > room:
        way_out = f"generate at most {room}, or shorten it" if room > 0 else "shorten it"
        raise UserError(
          f"prompt {number} of {len(prompt)} tokens and max_tokens={max_tokens} exceed the"
          f" {self.num_positions} positions of the model; {way_out}"
        )

  def _rounded(self, num_positions: int) -> int:
    return min(-(-num_positions // ROUND) * ROUND, self.num_positions)

  def _steps(self, inputs_BS, length_B, max_tokens, num_slots, sampling, seed):
    key, num_prompts = jax.random.key(seed), len(inputs_BS)
    state = self.prefill(inputs_BS, length_B, num_slots, key, sampling)
    for step in range(max_tokens):
      token_B, is_finite = state.token_B, state.is_finite
      if step + 1 < max_tokens:
        state = self.decode(state, key, sampling)
      if not bool(is_finite):
        raise UserError(
          f"the logits of token {step + 1} after the prompt are not finite; the run diverged, or"
          " its weights are too large for this dtype: take another checkpoint or float32"
        )
      yield np.asarray(token_B)[:num_prompts]

  def prefill(
    self,
    inputs_BS: np.ndarray,
    length_B: np.ndarray,
    num_slots: int,
    key: jax.Array,
    sampling: Sampling,
  ) -> State:
    """Prompts, each padded behind its length, and a first token for each.

    Args:
      num_slots: positions that prompt and text may take.
    """
    return self._prefill(
      *self._model.weights,
      self._model.put_batch(inputs_BS),
      self._model.put_batch(length_B[:, None]),
      key,
      num_slots=num_slots,
      sampling=sampling,
    )

  def decode(self, state: State, key: jax.Array, sampling: Sampling) -> State:
    """One more token a sequence. The old state's cache is used up."""
    cache, token_B, _ = state
    return self._decode(*self._model.weights, token_B, cache=cache, key=key, sampling=sampling)

  def _prefill_step(self, params, buffers, inputs_BS, length_B1, key, *, num_slots, sampling):
    with meshes.use_mesh(self._model.mesh):
      model = nnx.merge(self._model.graph, params, buffers)
      documents = self.documents and self.documents.document_ids(inputs_BS)
      length_B = jnp.maximum(length_B1[:, 0], 1)  # rows that fill up the devices have none
      hidden_TD, cache = model.prefill(inputs_BS, length_B, num_slots, documents)
      hidden_BSD = hidden_TD.reshape(*inputs_BS.shape, -1)
      last_BD = jnp.take_along_axis(hidden_BSD, length_B[:, None, None] - 1, axis=1)[:, 0]
      logit_BV = model.logits(meshes.constrain(last_BD, "TD"))
      return self._next(logit_BV, cache, key, sampling)

  def _decode_step(self, params, buffers, token_B, *, cache: Cache, key, sampling):
    with meshes.use_mesh(self._model.mesh):
      model = nnx.merge(self._decode_graph, params, buffers)
      begins_B = self.documents and token_B == self.documents.begin_id
      hidden_BD, cache = model.decode(token_B, cache, begins_B)
      return self._next(model.logits(hidden_BD), cache, key, sampling)

  def _next(self, logit_BV: Float[Array, "B V"], cache: Cache, key, sampling: Sampling) -> State:
    logit_BV = logit_BV[:, : self.vocab_size]
    token_B = sample(logit_BV, key, cache.length_B, sampling)
    return State(cache, token_B, jnp.isfinite(logit_BV).all())
