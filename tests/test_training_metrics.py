"""Figures of metrics.jsonl, by hand."""

import numpy as np

from moe_parity.training.metrics import routing_health


def test_an_even_load_has_no_violation_and_one_expert_all_of_it():
  """MaxVio is the largest load over the mean, less 1: E - 1 where one of E experts has all."""
  loads = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]])
  assert routing_health(loads) == {"max_vio": [0.0, 3.0, 1.0], "dead_experts": [0, 3, 1]}
