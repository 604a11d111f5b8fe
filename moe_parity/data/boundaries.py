"""Where documents begin inside a row, for models whose attention must not cross into the next."""

import numpy as np


def boundaries(inputs: np.ndarray, eos_id: int) -> dict[str, np.ndarray]:
  """What a row needs besides its tokens when documents are kept apart. All arrays are [B, S].

  Returns:
    "segment" int32: 0 for the document the row begins in, one more after each end of a document;
      a position may attend to its own segment only.
    "position" int32: distance from the first token of the segment in the row, for RoPE; ALiBi's
      distances between two positions of one segment do not change.
    "scored" bool: False where the input ends a document: its target begins another one, of which
      nothing in the segment says anything.
  """
  ends = inputs == eos_id
  segment = np.zeros(inputs.shape, np.int32)
  segment[:, 1:] = np.cumsum(ends[:, :-1], axis=1)
  places = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
  begins = np.zeros(inputs.shape, np.int32)
  begins[:, 1:] = np.where(ends[:, :-1], places[:, 1:], 0)
  position = places - np.maximum.accumulate(begins, axis=1)
  return {"segment": segment, "position": position.astype(np.int32), "scored": ~ends}
