import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data.boundaries import boundaries
from moe_parity.data.loader import Loader
from tests.small_store import small_store


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_marks_are_those_of_walking_along_the_row(rows):
  found = boundaries(np.array(rows, np.int32), eos_id=1)
  for number, row in enumerate(rows):
    segment, position = 0, 0
    for place, token in enumerate(row):
      assert found["segment"][number, place] == segment
      assert found["position"][number, place] == position
      assert found["scored"][number, place] == (token != 1)
      position += 1
      if token == 1:
        segment, position = segment + 1, 0


def test_tokens_of_one_segment_are_of_one_document(tmp_path):
  train = small_store(tmp_path).train
  owner = np.repeat(np.arange(train.num_documents), train.documents.num_tokens)
  batch = next(iter(Loader(train, 8, 64, mark_documents=True, prefetch=0)))
  for row, window in enumerate(batch["window"]):
    here = owner[window * 64 : (window + 1) * 64]
    next_owner = owner[window * 64 + 1 : (window + 1) * 64 + 1]
    assert (here - here[0]).tolist() == batch["segment"][row].tolist()
    assert (here == next_owner).tolist() == batch["scored"][row].tolist()


@pytest.mark.parametrize("marked", [False, True])
def test_marks_are_given_only_when_asked_for(tmp_path, marked):
  batch = Loader(small_store(tmp_path).train, 2, 16, mark_documents=marked).batch(0)
  extra = {"segment", "position", "scored"} if marked else set()
  assert set(batch) == {"inputs", "targets", "window"} | extra
