"""Causal FlashAttention for TPUs in two Pallas kernels: scores never leave VMEM (Dao 2205.14135).

Operands stay [B, S, H*Q], the layout in which products with weights produce and consume them; a
block takes one head out of the last axis. So nothing is transposed, and nothing is padded for
ALiBi, whose penalty is one addition a score. JAX's splash attention wants [B, H, S, Q] and has no
bias argument; carried as extra columns of q and k, ALiBi would double their width there.

One program computes the queries of a chunk (backward: the keys) and loops over the chunks of keys
up to it (queries from it on), which are in VMEM for a whole head: half of all pairs of positions
and half a chunk are computed. The backward kernel computes every score once and accumulates the
gradient of a head's queries in VMEM.

Axes besides those of `sharding/mesh.py`, local to this file: A = H Q all query channels, C all
channels of keys (fewer with grouped-query attention). `chunk` positions are one block.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import interpret, pl, pltpu, product, to_column, to_row
from moe_parity.kernels.residual_stacks import ResidualBuffers, layer_spec
from moe_parity.planning.tpu_slices import LANES

CHUNKS = (512, 256, 128)
MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)  # of a masked score; finite, to avoid nan


def flash_attention(
  q_BSHQ: Float[Array, "B S H Q"],
  k_BSNQ: Float[Array, "B S N Q"],
  v_BSNQ: Float[Array, "B S N Q"],
  slope_H: np.ndarray | None,
  document_BS: Int[Array, "B S"] | None = None,
  *,
  chunk: int = 0,
) -> Float[Array, "B S H Q"]:
  """Causal attention of this device's sequences, as `attention.causal_attention` defines it.

  Heads whose width is no multiple of 128 are padded with zeros, as the matrix unit would do.

  Args:
    slope_H: ALiBi's slopes; None for no penalty.
    document_BS: document ids; a position attends only within its own document.
    chunk: positions at a time; 0 is the largest of CHUNKS that divides S.
  """
  B, S, H, Q = q_BSHQ.shape
  config = _Config(
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
  y_BSA = _attention(config, *(x.reshape(B, S, -1) for x in operands), document_B1S)
  return y_BSA.reshape(B, S, H, -1)[..., :Q]


@dataclasses.dataclass(frozen=True)
class _Config:
  """Static parameters. `scale` multiplies q, rounded to its dtype, before its products."""

  num_heads: int
  heads_per_key: int
  chunk: int
  scale: float
  slopes: tuple[float, ...] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
  config: _Config,
  q_BSA: Float[Array, "B S A"],
  k_BSC: Float[Array, "B S C"],
  v_BSC: Float[Array, "B S C"],
  document_B1S: Int[Array, "B 1 S"] | None,
) -> Float[Array, "B S A"]:
  return _attend(config, None, q_BSA, k_BSC, v_BSC, document_B1S)[0]


def _forward(config: _Config, q_BSA, k_BSC, v_BSC, document_B1S):
  if not residual_stacks.is_scanning():
    y_BSA, norm_BH1S = _attend(config, None, q_BSA, k_BSC, v_BSC, document_B1S)
    residual = residual_stacks.single(q_BSA, k_BSC, v_BSC, y_BSA, norm_BH1S)
    return y_BSA, (residual, document_B1S)
  norm_BH1S = _norm_shape(config, q_BSA)
  arrays = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BSA, k_BSC, v_BSC, q_BSA))
  buffers = residual_stacks.allocate(*arrays, norm_BH1S, after=v_BSC)
  y_BSA, *written = _attend(config, buffers, q_BSA, k_BSC, v_BSC, document_B1S)
  return y_BSA, (residual_stacks.save(buffers, written), document_B1S)


def _norm_shape(config: _Config, q_BSA) -> jax.ShapeDtypeStruct:
  """The logarithm of each softmax's sum, [B, H, 1, S]."""
  B, S, _ = q_BSA.shape
  return jax.ShapeDtypeStruct((B, config.num_heads, 1, S), jnp.float32)


def _attend(config: _Config, buffers: ResidualBuffers | None, q_BSA, k_BSC, v_BSC, document_B1S):
  """y, and with `buffers` the stacks of saved residuals: q, k, v, y and the logarithm of each
  softmax's sum. Without, y and the latter."""
  (_, S, A), C = q_BSA.shape, config.chunk
  Q = A // config.num_heads
  rows = pl.BlockSpec((None, C, Q), lambda b, h, i, _: (b, i, h))
  keys = pl.BlockSpec((None, S, Q), lambda b, h, i, _: (b, 0, h // config.heads_per_key))
  key_rows = pl.BlockSpec((None, C, Q), lambda b, h, i, _: (b, i, h // config.heads_per_key))
  norms = pl.BlockSpec((None, None, 1, C), lambda b, h, i, _: (b, h, 0, i))
  return _call(
    config, _forward_kernel, "attention_forward", num_products=2,
    operands=(q_BSA, k_BSC, v_BSC), in_specs=[rows, keys, keys], document_B1S=document_B1S,
    buffers=buffers, written=[rows, key_rows, key_rows, rows, norms] if buffers else [],
    out_specs=[rows] if buffers else [rows, norms],
    out_shape=[q_BSA] if buffers else [q_BSA, _norm_shape(config, q_BSA)],
    scratch=[(C, LANES), (C, LANES), (C, Q)],
  )  # fmt: skip


def _backward(config: _Config, residuals, dy_BSA):
  residual, document_B1S = residuals
  buffers = residual_stacks.load(residual)
  (B, S, A), C = dy_BSA.shape, config.chunk
  Q = A // config.num_heads
  head = pl.BlockSpec((None, S, Q), lambda b, h, j, _: (b, 0, h))
  keys = pl.BlockSpec((None, C, Q), lambda b, h, j, _: (b, j, h // config.heads_per_key))
  key_rows = pl.BlockSpec((None, C, Q), lambda b, h, j, _: (b, j, h))
  norms = pl.BlockSpec((None, None, 1, S), lambda b, h, j, _: (b, h, 0, 0))
  dq_BSA, dk_BSA, dv_BSA = _call(
    config, _backward_kernel, "attention_backward", num_products=5,
    operands=(dy_BSA,), in_specs=[head], document_B1S=document_B1S,
    buffers=buffers, read=[head, keys, keys, head, norms],
    out_specs=[head, key_rows, key_rows], out_shape=[dy_BSA, dy_BSA, dy_BSA],
    scratch=[(1, S), (S, Q), (C, Q), (C, Q)],
  )  # fmt: skip
  if config.heads_per_key > 1:  # grouped-query attention: sum over the heads that share a key
    shape = (B, S, -1, config.heads_per_key, Q)
    dk_BSA, dv_BSA = (
      x.reshape(shape).astype(jnp.float32).sum(3).astype(x.dtype).reshape(B, S, -1)
      for x in (dk_BSA, dv_BSA)
    )
  return dq_BSA, dk_BSA, dv_BSA, None


_attention.defvjp(_forward, _backward)


def _call(
  config: _Config, kernel, name, *, num_products, operands, in_specs, document_B1S, out_specs,
  out_shape, scratch, buffers: ResidualBuffers | None, read=(), written=(),
):  # fmt: skip
  """Calls a kernel over sequences, heads and chunks.

  Its references are slopes, the residuals it reads, operands and documents; then results and the
  residuals it writes.
  """
  B, S, A = operands[0].shape
  H = config.num_heads
  slopes = np.zeros(H, np.float32) if config.slopes is None else np.array(config.slopes)
  stacks = () if buffers is None else buffers.stacks
  layer_shapes = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in stacks]
  in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), *map(layer_spec, read), *in_specs]
  operands = [jnp.asarray(slopes, jnp.float32), *(stacks if read else ()), *operands]
  if document_B1S is not None:
    in_specs.append(pl.BlockSpec((None, 1, S), lambda b, h, i, _: (b, 0, 0)))
    operands.append(document_B1S)
  out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out_shape]
  blocks = [*operands[1 + len(read) :], *layer_shapes, *out_shape]
  vmem_bytes = sum(rows * columns * 4 for rows, columns in scratch)
  vmem_bytes += 2 * sum(S * A // H * x.dtype.itemsize for x in blocks)
  aliases = {1 + len(operands) + i: len(out_shape) + i for i in range(len(written))}
  if written:
    in_specs += [pl.BlockSpec(memory_space=pl.ANY)] * len(stacks)
    operands += stacks
    out_specs = [*out_specs, *map(layer_spec, written)]
    out_shape += [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in stacks]
  return pl.pallas_call(
    functools.partial(kernel, config, document_B1S is not None, len(written)),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(B, H, S // config.chunk),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    ),
    out_shape=out_shape,
    input_output_aliases=aliases,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=vmem_bytes + 8 * 4 * config.chunk**2,
    ),
    cost_estimate=_cost(config, (B, S, A), num_products, blocks),
    interpret=interpret(),
    name=name,
  )(jnp.zeros(1, jnp.int32) if buffers is None else buffers.layer, *operands)


def _cost(config: _Config, shape_BSA: tuple[int, int, int], num_products: int, blocks):
  """The cost of `num_products` products a pair of positions, over the pairs that are computed."""
  (B, S, A), H = shape_BSA, config.num_heads
  num_chunks = S // config.chunk
  pairs = B * H * num_chunks * (num_chunks + 1) // 2 * config.chunk**2
  return pl.CostEstimate(
    flops=2 * num_products * pairs * A // H,
    transcendentals=pairs,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in blocks),
  )


def _forward_kernel(config, has_documents, num_saved, _, slope_ref, q_ref, k_ref, v_ref, *refs):
  """Queries of chunk i: the running maximum, sum and weighted values of each row's softmax.

  Blocks: q and y [chunk, Q], k and v [S, Q] of one head, documents [1, S]; scratch: maximum and sum
  [chunk, LANES], weighted values [chunk, Q]; norm [1, chunk]; saved in stacks: q, k, v, y
  [chunk, Q] and the norm.
  Scores are [queries, keys]. ALiBi's penalties count from the chunk's first query: slope times a
  query's own position there is the same for all its keys, and is added back with the norm.
  """
  document_ref, (*refs, max_ref, sum_ref, acc_ref) = _documents(has_documents, refs)
  y_ref, *saved_refs = refs[num_saved:]  # the first ones are the stacks, aliased to saved_refs
  C, (head, i) = config.chunk, (pl.program_id(1), pl.program_id(2))
  q = _scaled(q_ref[...], config.scale)
  max_ref[...] = jnp.full_like(max_ref, MASK_VALUE)
  sum_ref[...] = jnp.zeros_like(sum_ref)
  acc_ref[...] = jnp.zeros_like(acc_ref)

  def step(j, last: bool):
    chunk = _chunk(j, C)
    k, v = k_ref[chunk, :], v_ref[chunk, :]
    score = product(q, k, (1, 1))
    if config.slopes is not None:
      position = (j - i) * C + lax.broadcasted_iota(jnp.int32, (1, C), 1)
      score += slope_ref[head] * position.astype(jnp.float32)
    score = _masked(score, MASK_VALUE, 0 if last else None, document_ref, _chunk(i, C), chunk)
    old_max = max_ref[:, :1]
    new_max = jnp.maximum(old_max, jnp.max(score, axis=1, keepdims=True))
    weight, rescale = jnp.exp(score - new_max), jnp.exp(old_max - new_max)
    total = rescale * sum_ref[:, :1] + jnp.sum(weight, axis=1, keepdims=True)
    max_ref[...] = jnp.broadcast_to(new_max, max_ref.shape)
    sum_ref[...] = jnp.broadcast_to(total, sum_ref.shape)
    acc_ref[...] = rescale * acc_ref[...] + product(weight.astype(v.dtype), v, (1, 0))

  lax.fori_loop(0, i, lambda j, _: step(j, last=False), None)
  step(i, last=True)
  y_ref[...] = (acc_ref[...] / sum_ref[:, :1]).astype(y_ref.dtype)
  *saved_refs, norm_ref = saved_refs
  norm = (max_ref[...] + jnp.log(sum_ref[...])).T[:1]
  if config.slopes is not None:
    norm -= slope_ref[head] * lax.broadcasted_iota(jnp.int32, (1, C), 1).astype(jnp.float32)
  norm_ref[...] = norm
  if saved_refs:
    q_saved, k_saved, v_saved, y_saved = saved_refs
    q_saved[...], y_saved[...] = q_ref[...], y_ref[...]
    k_saved[...], v_saved[...] = k_ref[_chunk(i, C), :], v_ref[_chunk(i, C), :]


def _backward_kernel(
  config, has_documents, _, layer, slope_ref, q_ref, k_ref, v_ref, y_ref, norm_ref, dy_ref, *refs
):
  """Keys of chunk j: their gradients, and their part of the gradients of all later queries.

  Blocks: k and v [chunk, Q], q, y and dy [S, Q] of one head, norm [1, S], documents [1, S]; results
  dq [S, Q], dk and dv [chunk, Q]; scratch: delta [1, S] and float32 sums of the results.
  Scores are [keys, queries], so that norms and `delta` (row sums of y * dy) run along the lanes.
  """
  document_ref, refs = _documents(has_documents, refs)
  dq_ref, dk_ref, dv_ref, delta_ref, dq_sum, dk_sum, dv_sum = refs
  C, (head, j) = config.chunk, (pl.program_id(1), pl.program_id(2))
  num_chunks = pl.num_programs(2)
  k, v = k_ref[...], v_ref[...]
  dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

  def compute_delta(i):
    chunk = _chunk(i, C)
    y_dy = y_ref[chunk, :].astype(jnp.float32) * dy_ref[chunk, :].astype(jnp.float32)
    delta_ref[:, chunk] = to_row(jnp.sum(y_dy, axis=1, keepdims=True))

  @pl.when(j == 0)
  def _():
    dq_sum[...] = jnp.zeros_like(dq_sum)
    lax.fori_loop(0, num_chunks, lambda i, _: compute_delta(i), None)

  def step(i, first: bool):
    chunk = _chunk(i, C)
    q, dy = _scaled(q_ref[chunk, :], config.scale), dy_ref[chunk, :]
    score, norm = product(k, q, (1, 1)), norm_ref[:, chunk]
    if config.slopes is not None:
      position = (j - i) * C + lax.broadcasted_iota(jnp.int32, (C, 1), 0)
      score += slope_ref[head] * position.astype(jnp.float32)
      own = lax.broadcasted_iota(jnp.int32, (1, C), 1)
      norm += slope_ref[head] * own.astype(jnp.float32)
    weight = jnp.exp(score - norm)
    weight = _masked(weight, 0.0, 1 if first else None, document_ref, _chunk(j, C), chunk)
    dv_sum[...] += product(weight.astype(dy.dtype), dy, (1, 0))
    dscore = (weight * (product(v, dy, (1, 1)) - delta_ref[:, chunk])).astype(q.dtype)
    dk_sum[...] += product(dscore, q, (1, 0))
    dq_sum[chunk, :] += product(dscore, k, (0, 0))

  step(j, first=True)
  lax.fori_loop(j + 1, num_chunks, lambda i, _: step(i, first=False), None)
  dk_ref[...] = dk_sum[...].astype(dk_ref.dtype)
  dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)

  @pl.when(j == num_chunks - 1)
  def _():
    dq_ref[...] = (config.scale * dq_sum[...]).astype(dq_ref.dtype)


def _documents(has_documents: bool, refs):
  """(the document ids [1, S] or None, the other references)."""
  return (refs[0], refs[1:]) if has_documents else (None, refs)


def _chunk(index, size: int):
  """The positions of a chunk."""
  return pl.ds(pl.multiple_of(index * size, size), size)


def _masked(scores, mask_value: float, query_axis: int | None, document_ref, rows, columns):
  """Scores [queries, keys] or [keys, queries], with `mask_value` where a query may not attend to a
  key. `rows` and `columns` are the positions of the two axes.

  A later key is masked if `query_axis` says along which axis the queries of one and the same chunk
  run; a key of another document always.
  """
  masks = []
  if query_axis is not None:
    positions = (lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    masks.append(operator.le(*positions) if query_axis else operator.ge(*positions))
  if document_ref is not None:
    masks.append(to_column(document_ref[:, rows]) == document_ref[:, columns])
  return jnp.where(functools.reduce(operator.and_, masks), scores, mask_value) if masks else scores


def _scaled(q: Float[Array, "chunk Q"], scale: float) -> Float[Array, "chunk Q"]:
  """q times scale, rounded to the dtype of q."""
  return (q.astype(jnp.float32) * scale).astype(q.dtype)
