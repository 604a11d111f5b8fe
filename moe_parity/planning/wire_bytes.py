"""Bytes that expert parallelism sends between devices in one layer, for each token dispatcher."""

import dataclasses

from moe_parity.planning.expert_parallel import ExpertParallelShape, tile_padded_rows


@dataclasses.dataclass(frozen=True)
class WireBytes:
  """Bytes one device sends to others in one layer.

  Attributes:
    forward: of the first (mostly the only) round of the forward pass.
    backward: the same of the backward pass, without a forward pass that remat repeats.
    overflow_forward, overflow_backward: of each overflow round; 0 where there is none.
  """

  forward: int
  backward: int
  overflow_forward: int = 0
  overflow_backward: int = 0


def wire_bytes(
  token_dispatch: str, shape: ExpertParallelShape, *, d_model: int, itemsize: int
) -> WireBytes:
  """Bytes of the buffers of one layer's collectives, less what stays on the device.

  With b bytes a number, an all-to-all's row carries D b of its vector and its metadata in dispatch
  (ids and routing weights, 8 J) and D b in combine; its gradient D b in dispatch, D b and 4 J of
  metadata in combine. Ragged with deduplication sends the vectors of rows in use, and metadata of
  all slots. Without, a row is one assignment; routing weights and their gradients are all-gathered.

      all_to_all   forward (G-1) C (2 D b + 8 J)               backward (G-1) C (2 D b + 4 J)
      ragged dedup forward n 2 D b + (G-1) (8 J C + 4 G)       backward n 2 D b + (G-1) 4 J C
      ragged       forward n 2 D b + 4 (G-1) (T K + G L)       backward n 2 D b + 4 (G-1) R
      all_gather   forward (G-1) T (2 D b + 8 K)               backward (G-1) T (2 D b + 4 K)

  C = `first_rows` and J = `choices_per_row` of the shape. n counts the rows in use, here those of
  balanced routing to devices with L experts, and R the rows of a buffer for G `first_choices`
  (`tile_padded_rows`). An overflow round has `overflow_rows` or `overflow_choices` instead, and its
  backward pass repeats its dispatch (for ragged ones n is not known then, and not counted).
  """
  vector = d_model * itemsize
  if token_dispatch == "all_gather":
    rows, choices = (shape.num_devices - 1) * shape.num_tokens, shape.experts_per_token
    return WireBytes(rows * (2 * vector + 8 * choices), rows * (2 * vector + 4 * choices))
  formula = {
    "all_to_all": _all_to_all,
    "ragged_all_to_all": _ragged,
    "ragged_all_to_all_dedup": _ragged_dedup,
  }[token_dispatch]
  return formula(shape, vector)


def _all_to_all(shape: ExpertParallelShape, vector: int) -> WireBytes:
  others = shape.num_devices - 1
  dispatch_tags, combine_tags = 8 * shape.choices_per_row, 4 * shape.choices_per_row
  rows, overflow = others * shape.first_rows, others * shape.overflow_rows
  return WireBytes(
    rows * (2 * vector + dispatch_tags),
    rows * (2 * vector + combine_tags),
    overflow * (2 * vector + dispatch_tags),
    overflow * (3 * vector + dispatch_tags + combine_tags),
  )


def _ragged(shape: ExpertParallelShape, vector: int) -> WireBytes:
  others, local = shape.num_devices - 1, shape.experts_per_device
  assignments = shape.num_tokens * shape.experts_per_token
  rows = others * assignments * local / shape.num_experts
  buffer_rows = tile_padded_rows(shape.num_devices * shape.first_choices, local)
  return WireBytes(
    round(rows * 2 * vector) + 4 * others * (assignments + shape.num_devices * local),
    round(rows * 2 * vector) + 4 * others * buffer_rows,
  )


def _ragged_dedup(shape: ExpertParallelShape, vector: int) -> WireBytes:
  others, per_row = shape.num_devices - 1, shape.choices_per_row
  rows = others * shape.num_tokens * shape.expected_rows_per_pair(per_row)
  tags = 4 * others * per_row * shape.first_rows
  vectors = round(rows * 2 * vector)
  return WireBytes(vectors + 2 * tags + 4 * others * shape.num_devices, vectors + tags)
