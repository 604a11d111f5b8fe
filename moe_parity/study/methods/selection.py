"""Choosing among options by their runs: what is better beyond the noise, and what is not.

The noise is that of `bootstrap`: the choice of validation documents, paired over options, and the
spread between seeds pooled over the options at hand. Only these options' runs count, so a choice
made once is made again from the same files, whatever else the study has trained since.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moe_parity.study.analysis import bootstrap

LEVEL, NUM_DRAWS, SEED = 0.95, 4000, 20250612
RULE = (
  "An option replaces the one in place only if its bits per character are lower by more than the"
  " noise (simultaneous 95 % intervals over the options of a stage: validation documents, and seeds"
  " where they repeat); of several such, the lowest is taken, and inside the noise the one in place"
  " stays."
)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a stage came to; everything in the order of its options.

  Attributes:
    chosen: index of the option taken; the first is the one in place.
    tie: another option is inside the noise of the chosen one.
    bpc: mean over seeds; infinity for an option that diverged.
    difference: to the chosen one. interval: simultaneous, None where there is no noise estimate or
      the option diverged. verdict: chosen, better, worse, inside the noise or diverged.
  """

  chosen: int
  tie: bool
  bpc: tuple[float, ...]
  difference: tuple[float, ...]
  interval: tuple[tuple[float, float] | None, ...]
  verdict: tuple[str, ...]
  noise: bootstrap.SeedNoise


def differences(
  options: Sequence[Sequence[dict]], base: int, noise: bootstrap.SeedNoise
) -> list[tuple[float, tuple[float, float] | None]]:
  """(difference to option `base`, its simultaneous interval) of each option.

  Args:
    options: result.json of every seed of each, none of them diverged.
    noise: between seeds, pooled over whatever is alike.
  """
  value = [float(np.mean([_bpc(run) for run in runs])) for runs in options]
  everyone = list(range(len(options)))
  intervals = _against(everyone, value, _deviations(list(options), noise), base)
  return [(v - value[base], interval) for v, interval in zip(value, intervals, strict=True)]


def choose(options: Sequence[Sequence[dict | None]]) -> Choice:
  """Takes an option by `RULE`.

  Args:
    options: result.json of every seed of each option, None for a run that diverged.
  """
  alive = [i for i, runs in enumerate(options) if all(_bpc(run) is not None for run in runs)]
  value = [float(np.mean([_bpc(run) for run in options[i]])) if i in alive else math.inf
           for i in range(len(options))]  # fmt: skip
  noise = bootstrap.seed_noise([np.array([_bpc(run) for run in options[i]]) for i in alive])
  chosen = 0 if 0 in alive else None
  if not alive:
    return Choice(0, False, tuple(value), (math.inf,) * len(options), (None,) * len(options),
                  ("diverged",) * len(options), noise)  # fmt: skip
  deviations_BA = _deviations([options[i] for i in alive], noise)
  best = min(alive, key=value.__getitem__)
  if chosen is None:
    chosen = best
  elif best != chosen:
    intervals = _against(alive, value, deviations_BA, chosen)
    if intervals[best] is None or intervals[best][1] < 0:
      chosen = best
  intervals = _against(alive, value, deviations_BA, chosen)
  verdicts = [_verdict(i, chosen, value, intervals) for i in range(len(options))]
  return Choice(
    chosen=chosen,
    tie="inside the noise" in verdicts,
    bpc=tuple(value),
    difference=tuple(v - value[chosen] for v in value),
    interval=tuple(intervals),
    verdict=tuple(verdicts),
    noise=noise,
  )


def _bpc(run: dict | None) -> float | None:
  if run is None or not math.isfinite(run["validation"]["bpc"]):
    return None
  return run["validation"]["bpc"]


def _deviations(options: list[Sequence[dict]], noise: bootstrap.SeedNoise) -> np.ndarray:
  """Deviations [draws, options] of the options' means."""
  rng = np.random.default_rng(SEED)
  documents = [[run["validation"]["documents"] for run in runs] for runs in options]
  first = documents[0][0]
  deviations = np.zeros((NUM_DRAWS, len(options)))
  if first and all(len(docs) == len(first) for runs in documents for docs in runs):
    nats_AN = np.array([np.mean([[d["nats"] for d in docs] for docs in runs], 0)
                        for runs in documents])  # fmt: skip
    units_N = np.array([d["num_chars"] for d in first], float)
    domain_N = np.array([d["domain"] for d in first])
    deviations += bootstrap.document_deviations(nats_AN, units_N, domain_N, NUM_DRAWS, rng)
  if noise.df:
    sd_A = noise.sd / np.sqrt([len(runs) for runs in options])
    deviations += bootstrap.noise_deviations(sd_A, noise.df, NUM_DRAWS, rng)
  return deviations


def _against(
  alive: list[int], value: list[float], deviations_BA: np.ndarray, base: int
) -> list[tuple[float, float] | None]:
  """Simultaneous intervals of option minus base; None without noise, for base and the diverged."""
  intervals: list[tuple[float, float] | None] = [None] * len(value)
  others = [i for i in alive if i != base]
  moved = deviations_BA - deviations_BA[:, [alive.index(base)]]
  if others and moved.any():
    columns = [alive.index(i) for i in others]
    difference = np.array([value[i] - value[base] for i in others])
    found = bootstrap.simultaneous(difference, moved[:, columns], LEVEL)
    for i, low, high in zip(others, *found, strict=True):
      intervals[i] = (float(low), float(high))
  return intervals


def _verdict(i: int, chosen: int, value: list[float], intervals: list) -> str:
  if i == chosen:
    return "chosen"
  if math.isinf(value[i]):
    return "diverged"
  if intervals[i] is None:
    return "worse" if value[i] > value[chosen] else "inside the noise"
  if intervals[i][0] > 0:
    return "worse"
  return "better" if intervals[i][1] < 0 else "inside the noise"
