"""Causal attention for TPUs in two Pallas kernels: scores stay on the chip (Dao 2205.14135).

Operands lie as products with weights leave and take them, [B, S, H*Q]; a kernel's blocks cut heads
out of the last axis. So nothing is transposed, and nothing widened for ALiBi, whose penalty is one
addition a score. JAX's splash kernel wants [B, H, S, Q] and takes no penalty: four columns more a
head of q and k carried it, in 128s that doubled the products of q and k; with transposes, stacks of
what was widened and a row of 128 equal numbers for every sum of a softmax it took a layer of the
paper's 7B on v5p 1.7 ms more (compiler-estimated).

One program takes the queries of a chunk (backward: the keys) and loops over the chunks of keys up
to it (queries from it on), which lie on the chip for a whole head: half of all pairs of positions
and half a chunk are computed. The backward kernel makes every score once and adds up the gradient
of a head's queries on the chip.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import platform

LANES = 128
CHUNKS = (512, 256, 128)
HIDDEN = -0.7 * float(np.finfo(np.float32).max)  # a score nobody sees; finite, so that no nan comes


def flash_attention(
  q_BSHQ: Float[Array, "B S H Q"],
  k_BSNQ: Float[Array, "B S N Q"],
  v_BSNQ: Float[Array, "B S N Q"],
  slope_H: np.ndarray | None,
  document_BS: Int[Array, "B S"] | None = None,
  *,
  chunk: int = 0,
) -> Float[Array, "B S H Q"]:
  """`attention.causal_attention` of the sequences at hand.

  Heads whose width is no multiple of 128 are filled up with zeros, which the matrix unit would do.

  Args:
    chunk: positions at a time; 0 is the largest of CHUNKS that divides S.
  """
  B, S, H, Q = q_BSHQ.shape
  how = _How(
    num_heads=H,
    heads_per_key=H // k_BSNQ.shape[2],
    chunk=chunk or next(size for size in CHUNKS if S % size == 0),
    scale=Q**-0.5,
    slopes=None if slope_H is None else tuple(float(slope) for slope in slope_H),
  )
  width = -(-Q // LANES) * LANES - Q
  operands = (q_BSHQ, k_BSNQ, v_BSNQ)
  if width:
    operands = tuple(jnp.pad(x, ((0, 0),) * 3 + ((0, width),)) for x in operands)
  document_B1S = None if document_BS is None else document_BS.astype(jnp.int32)[:, None]
  y_BSA = _attention(how, *(x.reshape(B, S, -1) for x in operands), document_B1S)
  return y_BSA.reshape(B, S, H, -1)[..., :Q]


@dataclasses.dataclass(frozen=True)
class _How:
  """What does not change from call to call. `scale` multiplies q before its products, rounded."""

  num_heads: int
  heads_per_key: int
  chunk: int
  scale: float
  slopes: tuple[float, ...] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: _How, q_BSA, k_BSC, v_BSC, document_B1S):
  return _attend(how, None, q_BSA, k_BSC, v_BSC, document_B1S)[0]


def _forward(how: _How, q_BSA, k_BSC, v_BSC, document_B1S):
  (B, S, _), H = q_BSA.shape, how.num_heads
  norm_BH1S = jax.ShapeDtypeStruct((B, H, 1, S), jnp.float32)
  arrays = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BSA, k_BSC, v_BSC, q_BSA))
  memory = residual_stacks.memory_for(*arrays, norm_BH1S, after=v_BSC)
  y_BSA, *written = _attend(how, memory, q_BSA, k_BSC, v_BSC, document_B1S)
  return y_BSA, (residual_stacks.handed_over(memory, written), document_B1S)


def _attend(how: _How, memory: residual_stacks.Memory | None, q_BSA, k_BSC, v_BSC, document_B1S):
  """y, and where there is memory for it what the backward pass asks for: q, k, v, y and the
  logarithm of each softmax's sum, [B, H, 1, S]."""
  (_, S, A), C = q_BSA.shape, how.chunk
  Q = A // how.num_heads
  rows = pl.BlockSpec((None, C, Q), lambda b, h, i, _: (b, i, h))
  keys = pl.BlockSpec((None, S, Q), lambda b, h, i, _: (b, 0, h // how.heads_per_key))
  of_keys = pl.BlockSpec((None, C, Q), lambda b, h, i, _: (b, i, h // how.heads_per_key))
  norms = pl.BlockSpec((None, None, 1, C), lambda b, h, i, _: (b, h, 0, i))
  return _call(
    how, _forward_kernel, "attention_forward", num_products=2,
    operands=(q_BSA, k_BSC, v_BSC), in_specs=[rows, keys, keys], document_B1S=document_B1S,
    memory=memory, written=[rows, of_keys, of_keys, rows, norms] if memory else [],
    out_specs=[rows], out_shape=[q_BSA],
    scratch=[(C, LANES), (C, LANES), (C, Q)],
  )  # fmt: skip


def _backward(how: _How, residuals, dy_BSA):
  residual, document_B1S = residuals
  memory = residual_stacks.memory_of(residual)
  (B, S, A), C = dy_BSA.shape, how.chunk
  Q = A // how.num_heads
  head = pl.BlockSpec((None, S, Q), lambda b, h, j, _: (b, 0, h))
  keys = pl.BlockSpec((None, C, Q), lambda b, h, j, _: (b, j, h // how.heads_per_key))
  of_keys = pl.BlockSpec((None, C, Q), lambda b, h, j, _: (b, j, h))
  norms = pl.BlockSpec((None, None, 1, S), lambda b, h, j, _: (b, h, 0, 0))
  dq_BSA, dk_BSA, dv_BSA = _call(
    how, _backward_kernel, "attention_backward", num_products=5,
    operands=(dy_BSA,), in_specs=[head], document_B1S=document_B1S,
    memory=memory, read=[head, keys, keys, head, norms],
    out_specs=[head, of_keys, of_keys], out_shape=[dy_BSA, dy_BSA, dy_BSA],
    scratch=[(1, S), (S, Q), (C, Q), (C, Q)],
  )  # fmt: skip
  if how.heads_per_key > 1:  # of the heads that share a key
    shape = (B, S, -1, how.heads_per_key, Q)
    dk_BSA, dv_BSA = (
      x.reshape(shape).astype(jnp.float32).sum(3).astype(x.dtype).reshape(B, S, -1)
      for x in (dk_BSA, dv_BSA)
    )
  return dq_BSA, dk_BSA, dv_BSA, None


_attention.defvjp(_forward, _backward)


def _call(
  how: _How, kernel, name, *, num_products, operands, in_specs, document_B1S, out_specs, out_shape,
  scratch, memory: residual_stacks.Memory | None, read=(), written=(),
):  # fmt: skip
  """A kernel over sequences, heads and chunks. It is given slopes, what it reads of what is kept,
  operands and documents, then its results and what it writes of what is kept."""
  B, S, A = operands[0].shape
  slopes = np.zeros(how.num_heads, np.float32) if how.slopes is None else np.array(how.slopes)
  num_chunks = S // how.chunk
  pairs = B * how.num_heads * num_chunks * (num_chunks + 1) // 2 * how.chunk**2
  stacks = () if memory is None else memory.stacks
  of_layer = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in stacks]
  in_specs = [
    pl.BlockSpec(memory_space=pltpu.SMEM),
    *map(residual_stacks.of_layer, read),
    *in_specs,
  ]
  operands = [jnp.asarray(slopes, jnp.float32), *(stacks if read else ()), *operands]
  if document_B1S is not None:
    in_specs.append(pl.BlockSpec((None, 1, S), lambda b, h, i, _: (b, 0, 0)))
    operands.append(document_B1S)
  out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out_shape]
  blocks = [*operands[1 + len(read) :], *of_layer, *out_shape]
  touched = sum(x.size * x.dtype.itemsize for x in blocks)
  on_chip = sum(rows * columns * 4 for rows, columns in scratch)
  on_chip += 2 * sum(S * A // how.num_heads * x.dtype.itemsize for x in blocks)
  aliases = {1 + len(operands) + i: len(out_shape) + i for i in range(len(written))}
  if written:
    in_specs += [pl.BlockSpec(memory_space=pl.ANY)] * len(stacks)
    operands += stacks
    out_specs = [*out_specs, *map(residual_stacks.of_layer, written)]
    out_shape += [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in stacks]
  return pl.pallas_call(
    functools.partial(kernel, how, document_B1S is not None, len(written)),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(B, how.num_heads, num_chunks),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    ),
    out_shape=out_shape,
    input_output_aliases=aliases,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=on_chip + 8 * 4 * how.chunk**2,
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * num_products * pairs * A // how.num_heads,
      transcendentals=pairs,
      bytes_accessed=touched,
    ),
    interpret=platform() != "tpu",
    name=name,
  )(jnp.zeros(1, jnp.int32) if memory is None else memory.layer, *operands)


def _forward_kernel(how, has_documents, num_kept, _, slope_ref, q_ref, k_ref, v_ref, *refs):
  """Queries of chunk i: the running maximum and sum of each row's softmax, and what it mixes.

  Scores are [queries, keys]. Penalties count from the chunk's first query: slope times a query's
  own place there is the same for all its keys and joins again with the norm.
  """
  document_ref, (*refs, top_ref, sum_ref, mixed_ref) = _documents(has_documents, refs)
  y_ref, *kept_refs = refs[num_kept:]  # before them the memory itself
  C, (head, i) = how.chunk, (pl.program_id(1), pl.program_id(2))
  q = _scaled(q_ref[...], how.scale)
  top_ref[...] = jnp.full_like(top_ref, HIDDEN)
  sum_ref[...] = jnp.zeros_like(sum_ref)
  mixed_ref[...] = jnp.zeros_like(mixed_ref)

  def step(j, last: bool):
    here = _chunk(j, C)
    k, v = k_ref[here, :], v_ref[here, :]
    score = _product(q, k, 1, 1)
    if how.slopes is not None:
      place = (j - i) * C + lax.broadcasted_iota(jnp.int32, (1, C), 1)
      score += slope_ref[head] * place.astype(jnp.float32)
    score = _masked(score, HIDDEN, 0 if last else None, document_ref, _chunk(i, C), here)
    before = top_ref[:, :1]
    top = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
    weight, shrink = jnp.exp(score - top), jnp.exp(before - top)
    total = shrink * sum_ref[:, :1] + jnp.sum(weight, axis=1, keepdims=True)
    top_ref[...] = jnp.broadcast_to(top, top_ref.shape)
    sum_ref[...] = jnp.broadcast_to(total, sum_ref.shape)
    mixed_ref[...] = shrink * mixed_ref[...] + _product(weight.astype(v.dtype), v, 1, 0)

  lax.fori_loop(0, i, lambda j, _: step(j, last=False), None)
  step(i, last=True)
  y_ref[...] = (mixed_ref[...] / sum_ref[:, :1]).astype(y_ref.dtype)
  if kept_refs:
    q_kept, k_kept, v_kept, y_kept, norm_kept = kept_refs
    q_kept[...], y_kept[...] = q_ref[...], y_ref[...]
    k_kept[...], v_kept[...] = k_ref[_chunk(i, C), :], v_ref[_chunk(i, C), :]
    norm = (top_ref[...] + jnp.log(sum_ref[...])).T[:1]
    if how.slopes is not None:
      norm -= slope_ref[head] * lax.broadcasted_iota(jnp.int32, (1, C), 1).astype(jnp.float32)
    norm_kept[...] = norm


def _backward_kernel(
  how, has_documents, _, layer, slope_ref, q_ref, k_ref, v_ref, y_ref, norm_ref, dy_ref, *refs
):
  """Keys of chunk j: their gradients, and what they add to those of all later queries.

  Scores are [keys, queries], so that norms lie along the lanes.
  """
  document_ref, refs = _documents(has_documents, refs)
  dq_ref, dk_ref, dv_ref, along_ref, dq_sum, dk_sum, dv_sum = refs
  C, (head, j) = how.chunk, (pl.program_id(1), pl.program_id(2))
  num_chunks = pl.num_programs(2)
  k, v = k_ref[...], v_ref[...]
  dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

  def along(i):
    here = _chunk(i, C)
    product = y_ref[here, :].astype(jnp.float32) * dy_ref[here, :].astype(jnp.float32)
    along_ref[:, here] = _row(jnp.sum(product, axis=1, keepdims=True))

  @pl.when(j == 0)
  def _():
    dq_sum[...] = jnp.zeros_like(dq_sum)
    lax.fori_loop(0, num_chunks, lambda i, _: along(i), None)

  def step(i, first: bool):
    here = _chunk(i, C)
    q, dy = _scaled(q_ref[here, :], how.scale), dy_ref[here, :]
    score, norm = _product(k, q, 1, 1), norm_ref[:, here]
    if how.slopes is not None:
      place = (j - i) * C + lax.broadcasted_iota(jnp.int32, (C, 1), 0)
      score += slope_ref[head] * place.astype(jnp.float32)
      own = lax.broadcasted_iota(jnp.int32, (1, C), 1)
      norm += slope_ref[head] * own.astype(jnp.float32)
    weight = jnp.exp(score - norm)
    weight = _masked(weight, 0.0, 1 if first else None, document_ref, _chunk(j, C), here)
    dv_sum[...] += _product(weight.astype(dy.dtype), dy, 1, 0)
    dscore = (weight * (_product(v, dy, 1, 1) - along_ref[:, here])).astype(q.dtype)
    dk_sum[...] += _product(dscore, q, 1, 0)
    dq_sum[here, :] += _product(dscore, k, 0, 0)

  step(j, first=True)
  lax.fori_loop(j + 1, num_chunks, lambda i, _: step(i, first=False), None)
  dk_ref[...] = dk_sum[...].astype(dk_ref.dtype)
  dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)

  @pl.when(j == num_chunks - 1)
  def _():
    dq_ref[...] = (how.scale * dq_sum[...]).astype(dq_ref.dtype)


def _documents(has_documents: bool, refs):
  return (refs[0], refs[1:]) if has_documents else (None, refs)


def _chunk(index, size: int):
  return pl.ds(pl.multiple_of(index * size, size), size)


def _masked(pairs, unseen: float, query_axis: int | None, document_ref, rows, columns):
  """Pairs of positions, and `unseen` where a query does not see a key: a later one, if one chunk is
  both's and its queries lie along `query_axis`, or one of another document."""
  seen = []
  if query_axis is not None:
    place = (lax.broadcasted_iota(jnp.int32, pairs.shape, axis) for axis in (0, 1))
    seen.append(operator.le(*place) if query_axis else operator.ge(*place))
  if document_ref is not None:
    seen.append(_column(document_ref[:, rows]) == document_ref[:, columns])
  return jnp.where(functools.reduce(operator.and_, seen), pairs, unseen) if seen else pairs


def _column(row):
  """[1, C] -> [C, 1]."""
  return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _row(column):
  """[C, 1] -> [1, C]."""
  return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def _scaled(q, scale: float):
  return (q.astype(jnp.float32) * scale).astype(q.dtype)


def _product(a, b, of_a: int, of_b: int):
  """Summed over axis `of_a` of a and `of_b` of b, in float32."""
  contracted = (((of_a,), (of_b,)), ((), ()))
  return lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)
