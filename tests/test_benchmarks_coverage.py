"""The coverage benchmark, small: intervals hold about as often as they say."""

import json
import math

import numpy as np
import pytest

from moe_parity import cli
from moe_parity.benchmarks import coverage, suite
from moe_parity.errors import UserError
from moe_parity.study.analysis import seed_noise


@pytest.fixture(scope="module")
def rows():
  return coverage.measure(60, noises=coverage.NOISES[:2], seeds=(3,), documents=(5,), num_draws=300)


def test_intervals_hold_about_as_often_as_they_say(rows):
  for row in rows:
    if row["nominal"] == 0.95:  # three standard deviations of 60 studies below 0.95
      assert row["measured"] > 0.866, row
    elif row["what"] == "misfit of a true curve":
      assert row["measured"] < 0.15, row


def test_the_table_names_every_interval_of_every_cell(rows):
  assert len(rows) == 2 * (len(coverage.INTERVALS) + 3)
  assert {row["noise"] for row in rows} == {noise.name for noise in coverage.NOISES[:2]}
  for row in rows:
    assert set(row) == {"noise", "seeds", "documents", "what", "nominal", "measured", "in_range"}


def test_pooled_noise_would_fail_the_benchmark(monkeypatch):
  """What was done at first: one variance for all arms, known to all their degrees of freedom."""

  def pooled(squares, df, num_arms=None):
    return (squares * 0 + squares.sum() / df.sum()), df * 0 + df.sum()

  (noise,) = (n for n in coverage.NOISES if n.name == "one MoE arm 7.5 times the others")
  args = dict(noises=[noise], seeds=(3,), documents=(60,), num_draws=50)
  now = {row["what"]: row["measured"] for row in coverage.measure(60, **args)}
  monkeypatch.setattr(seed_noise, "moderated", pooled)
  before = {row["what"]: row["measured"] for row in coverage.measure(60, **args)}
  name = "MoE minus dense, all rows at once"
  assert before[name] < 0.87 < now[name] + 0.06


def test_a_noisier_dense_arm_is_not_taken_for_one_of_many(monkeypatch):
  """What was done before: dense arms and MoE arms were taken to vary alike."""
  (noise,) = (n for n in coverage.NOISES if n.name == "dense 3 times the others")
  args = dict(noises=[noise], seeds=(3,), documents=(60,), num_draws=50)
  now = {row["what"]: row["measured"] for row in coverage.measure(150, **args)}
  fit = seed_noise.fit
  monkeypatch.setattr(seed_noise, "fit", lambda value, arm, seed, is_dense: fit(value, arm, seed))
  before = {row["what"]: row["measured"] for row in coverage.measure(150, **args)}
  assert before["MoE minus dense"] < 0.92 < now["MoE minus dense"]


def test_what_was_tuned_on_and_what_was_not_share_no_cell(monkeypatch):
  asked = []
  measure = lambda number, *args, **kwargs: asked.append((args, kwargs)) or [{"what": "x"}]  # noqa: E731
  monkeypatch.setattr(coverage, "measure", measure)
  rows = coverage.run()
  assert [row["chosen_with"] for row in rows] == [True, False]
  assert asked[1] == ((coverage.UNSEEN,), {"seeds": (2, 4), "documents": (12, 200)})
  assert not {n.sd_A for n in coverage.UNSEEN if n.fold == 1 and not n.tails} & {
    n.sd_A for n in coverage.NOISES
  }


@pytest.mark.parametrize("noise", coverage.UNSEEN, ids=lambda noise: noise.name)
def test_errors_have_the_standard_deviation_they_state(noise):
  rng = np.random.default_rng(0)
  errors = np.stack([noise.errors(rng, 4) for _ in range(4000)])
  spread = np.sqrt((errors**2).mean((0, 2)))
  wide = np.array(noise.sd_A)
  if noise.fold > 1:  # mean of fold^(2u) over u in -1 to 1
    ends = noise.fold**2, noise.fold**-2
    wide = wide * math.sqrt((ends[0] - ends[1]) / (4 * math.log(noise.fold)))
  np.testing.assert_allclose(spread, wide, rtol=0.15 if noise.tails else 0.05)


def test_every_benchmark_says_what_its_columns_are(capsys, monkeypatch):
  monkeypatch.setattr(coverage, "run", lambda: [{"what": "x", "measured": 0.95}])
  assert cli.main(["bench", "--only=coverage"]) == 0
  printed = capsys.readouterr().out.split()
  assert printed[:3] == ["coverage:", "measured:", "how"] and printed[-2:] == ["x", "0.95"]
  with pytest.raises(UserError, match="the benchmarks are") as refused:
    suite.run(["nothing"])
  named = str(refused.value).partition("the benchmarks are ")[2]
  assert {name.strip() for name in named.split(",")} == set(suite.COLUMNS)


def test_bench_writes_the_table_as_json(capsys, monkeypatch):
  monkeypatch.setattr(coverage, "run", lambda: [{"what": "x", "measured": 0.95}])
  assert cli.main(["bench", "--only=coverage", "--json"]) == 0
  assert json.loads(capsys.readouterr().out) == {"coverage": [{"what": "x", "measured": 0.95}]}
