"""Processes of one run that are not alike are found before anything is trained."""

import numpy as np
import pytest

from moe_parity.study.workers.agreement import check_agreement, disagreements
from tests.helpers.workers import TINY, end_all, start, world


def test_the_odd_process_is_named_with_what_it_differs_in():
  alike = np.array([[1, 2, 3]] * 4)
  assert disagreements(alike, ["jax", "libtpu", "config"]) == []
  alike[2] = [1, 9, 8]
  assert disagreements(alike, ["jax", "libtpu", "config"]) == ["process 2 in libtpu, config"]
  assert disagreements(np.array([[1], [2]]), ["jax"]) == ["process 1 in jax"]
  assert disagreements(np.array([[2], [1], [1]]), ["jax"]) == ["process 0 in jax"]


def test_one_process_agrees_with_itself():
  check_agreement({"name": "x"})


@pytest.mark.slow
def test_processes_of_other_configs_are_refused_before_training(tmp_path):
  words = ["train", "--arm=moe_40", f"--workdir={tmp_path}/run", *TINY, "--config.mesh.data=2",
           "--config.budget.batch_multiple=4"]  # fmt: skip
  more = ([], ["--config.optimizer.clip_norm=0.5"])
  both = [
    start(tmp_path / "cache", *words, *place, *own)
    for place, own in zip(world(2), more, strict=True)
  ]
  ends = end_all(*both)
  assert [rc for rc, _ in ends] == [2, 2], ends
  for _, output in ends:
    assert "the processes of this run differ: process 1 in config" in output
    assert "Traceback" not in output
  assert not (tmp_path / "run").exists()
