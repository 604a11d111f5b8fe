import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data.loader import BudgetOverrun, Loader, prefetch
from moe_parity.errors import UserError
from tests.helpers.small_store import small_store

S = 24


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  return small_store(tmp_path_factory.mktemp("loader")).train


def take(loader, count):
  return list(itertools.islice(iter(loader), count))


def test_a_batch_is_rows_of_the_stream_shifted_by_one(train):
  for batch in take(Loader(train, 6, S, seed=3), 5):
    assert batch["inputs"].dtype == batch["targets"].dtype == batch["window"].dtype == np.int32
    for row, window in enumerate(batch["window"]):
      start = int(window) * S
      assert batch["inputs"][row].tolist() == train.tokens[start : start + S].tolist()
      assert batch["targets"][row].tolist() == train.tokens[start + 1 : start + S + 1].tolist()


@given(
  hosts=st.sampled_from([1, 2, 3, 4]),
  restart=st.integers(0, 9),
  hosts_after=st.sampled_from([1, 2, 6]),
  unique=st.integers(1, 40),
  seed=st.integers(0, 2**32),
)
@settings(max_examples=25)
def test_hosts_and_restarts_leave_the_global_order_alone(
  train, hosts, restart, hosts_after, unique, seed
):
  batch, steps = 12, 10
  arguments = dict(num_unique_tokens=unique * S, seed=seed, prefetch=0)
  one = [b["window"] for b in take(Loader(train, batch, S, **arguments), steps)]
  found = []
  for first, last, count in ((0, restart, hosts), (restart, steps, hosts_after)):
    parts = [
      take(
        Loader(
          train, batch, S, start_row=first * batch, host_index=h, num_hosts=count, **arguments
        ),
        last - first,
      )
      for h in range(count)
    ]
    for step in range(last - first):
      found.append(np.concatenate([part[step]["window"] for part in parts]))
  assert np.array_equal(np.stack(found), np.stack(one))
  seen = np.concatenate(one)
  assert len(set(seen.tolist())) <= unique
  counts = np.bincount(seen)
  assert counts.max() - counts[counts > 0].min() <= 1


HOST = """
import json, sys
from moe_parity.data.loader import Loader
from moe_parity.data.token_store import open_store

folder, host, seq_len = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
loader = Loader(open_store(folder).train, 6, seq_len, 20 * seq_len, 5, num_tokens=54 * seq_len,
                host_index=host, num_hosts=2)
batches = iter(loader)
print(json.dumps([[b["window"].tolist(), b["targets"].sum(axis=1).tolist()]
                  for b in (next(batches) for _ in range(9))]))
"""


def test_two_processes_read_together_what_one_reads_alone(train):
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", HOST, str(train.folder), str(host), str(S)], stdout=subprocess.PIPE
    )
    for host in range(2)
  ]
  first, second = (json.loads(process.communicate(timeout=120)[0]) for process in processes)
  alone = take(Loader(train, 6, S, 20 * S, 5, num_tokens=54 * S, prefetch=0), 9)
  for a, b, whole in zip(first, second, alone, strict=True):
    assert a[0] + b[0] == whole["window"].tolist()
    assert a[1] + b[1] == whole["targets"].sum(axis=1).tolist()
  counts = np.bincount(np.concatenate([batch["window"] for batch in alone]))
  assert sorted(counts[counts > 0].tolist()) == [2] * 6 + [3] * 14  # 54 rows of 20 windows


def test_reading_ahead_changes_nothing(train):
  plain = take(Loader(train, 4, S, seed=1, prefetch=0), 30)
  ahead = take(Loader(train, 4, S, seed=1, prefetch=3), 30)
  for a, b in zip(plain, ahead, strict=True):
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_the_position_is_one_integer_that_resumes_exactly(train):
  batches = iter(Loader(train, 5, S, seed=2))
  for _ in range(7):
    next(batches)
  resumed = iter(Loader(train, 5, S, seed=2, start_row=batches.row))
  assert batches.row == 35
  for _ in range(4):
    assert np.array_equal(next(batches)["window"], next(resumed)["window"])


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_batch_over_the_planned_tokens_is_not_handed_out(train, ahead):
  batches = iter(Loader(train, 4, S, num_unique_tokens=8 * S, num_tokens=10 * S, prefetch=ahead))
  next(batches), next(batches)
  with pytest.raises(BudgetOverrun, match=f"make {12 * S} tokens seen, the plan allows {10 * S}"):
    next(batches)
  assert batches.row == 8


def test_a_resumed_run_cannot_pass_the_plan_either(train):
  batches = iter(Loader(train, 4, S, num_tokens=10 * S, start_row=8))
  with pytest.raises(BudgetOverrun):
    next(batches)


def test_more_unique_tokens_than_the_corpus_has_are_refused(train):
  windows = train.num_windows(S)
  Loader(train, 4, S, num_unique_tokens=windows * S)
  with pytest.raises(UserError, match=f"the corpus has {windows}"):
    Loader(train, 4, S, num_unique_tokens=(windows + 1) * S)


def test_sizes_that_do_not_fit_are_refused(train):
  with pytest.raises(UserError, match="multiple of 3"):
    Loader(train, 4, S, num_hosts=3)
  with pytest.raises(UserError, match="host 2 of 2"):
    Loader(train, 4, S, host_index=2, num_hosts=2)
  with pytest.raises(UserError, match="batch_sequences=0"):
    Loader(train, 0, S)
  with pytest.raises(UserError, match="start_row=-1"):
    Loader(train, 4, S, start_row=-1)


def test_prefetch_puts_ahead_and_loses_nothing():
  started = []
  moved = prefetch(range(7), lambda x: (started.append(x), x * 10)[1], depth=2)
  assert next(moved) == 0 and started == [0]  # the first step waits for nothing else
  assert next(moved) == 10 and started == [0, 1, 2, 3]
  assert list(moved) == [20, 30, 40, 50, 60]


@pytest.mark.parametrize("depth", [1, 3])
def test_the_end_of_data_is_raised_after_the_batches_before_it(train, depth):
  loader = Loader(train, 4, S, num_tokens=5 * 4 * S, prefetch=0)
  moved = prefetch(loader, lambda batch: batch, depth)
  assert len([next(moved) for _ in range(5)]) == 5
  with pytest.raises(BudgetOverrun):
    next(moved)


def test_a_batch_moves_to_the_cpu_device_without_a_copy(train):
  import jax

  batch = Loader(train, 5, S).batch(0)
  for name in ("inputs", "targets"):
    moved = jax.device_put(batch[name], jax.devices("cpu")[0])
    assert moved.unsafe_buffer_pointer() == batch[name].ctypes.data
