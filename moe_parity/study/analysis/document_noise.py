"""How far a score may be off because other validation documents could have been drawn.

A score is a ratio of sums, nats over characters, so document i counts with its share w_i of its
domain's characters. Within a domain the variance of an arm's score is

    S / (1 - S) * sum of w_i r_i^2

with S the sum of w^2 and r_i the document's bits a character minus its domain's. That is unbiased
if documents vary alike, however unequal their lengths are, and too large if long ones vary less.
Its degrees of freedom follow from the lengths alone (Bell and McCaffrey 2002): a few documents that
hold most text count as few. Domains keep their share of all characters. All arms are scored on the
same documents, so a difference between arms varies by the documents' differences only.
"""

import math

import numpy as np

from moe_parity.study.analysis.uncertainty import VarianceSource


def ratio_of_sums(nats_RN: np.ndarray, units_N: np.ndarray) -> np.ndarray:
  """Bits per unit over all documents: sum of nats over documents, by units and by ln 2."""
  return nats_RN.sum(-1) / (units_N.sum() * math.log(2))


def sources(nats_RN: np.ndarray, units_N: np.ndarray, domain_N: np.ndarray) -> list[VarianceSource]:
  """One source of uncertainty a domain, over the rows R (runs, or arms averaged over seeds).

  Args:
    nats_RN: nats of row R on document N.
    units_N: characters (or bytes) of the document.
    domain_N: its domain. A domain of one document shows no spread and adds no source.
  """
  root = residuals(nats_RN, units_N, domain_N)
  return [
    VarianceSource(
      root[:, members], _domain_df(units_N[members]), f"documents of {domain_N[members[0]]}"
    )
    for members in _domains(domain_N)
  ]


def residuals(nats_RN: np.ndarray, units_N: np.ndarray, domain_N: np.ndarray) -> np.ndarray:
  """What each document adds to the uncertainty, [R, N] in bits per unit: the covariance of two
  rows is the sum over documents of their product."""
  found = np.zeros(nats_RN.shape)
  for members in _domains(domain_N):
    units = units_N[members]
    share, whole = units / units.sum(), units.sum() / units_N.sum()
    bits = nats_RN[:, members] / (np.maximum(units, 1) * math.log(2))  # an empty one has no nats
    square = (share**2).sum()
    scale = np.sqrt(share * square / (1 - square))
    found[:, members] = whole * scale * (bits - (bits @ share)[:, None])
  return found


def degrees_of_freedom(nats_RN: np.ndarray, units_N: np.ndarray, domain_N: np.ndarray) -> float:
  """Degrees of freedom of the documents' variance; 0 where no domain has two documents.

  Of each domain from its lengths alone, and over domains by Satterthwaite's rule with the variance
  that each adds to the differences between rows (to the row itself where there is but one).
  """
  found = sources(nats_RN, units_N, domain_N)
  if not found:
    return 0.0
  roots = [s.root_AM - s.root_AM.mean(0) if len(nats_RN) > 1 else s.root_AM for s in found]
  variance, df = np.array([(root**2).sum() for root in roots]), np.array([s.df for s in found])
  if not variance.any():
    return float(df.sum())
  return float(variance.sum() ** 2 / (variance**2 / df).sum())


def _domains(domain_N: np.ndarray) -> list[np.ndarray]:
  """Indices of the documents of every domain that has at least two."""
  members = [np.flatnonzero(domain_N == domain) for domain in np.unique(domain_N)]
  return [m for m in members if len(m) > 1]


def _domain_df(units_N: np.ndarray) -> float:
  """2 E(v)^2 / var(v) of the domain's variance estimate v, if documents vary alike.

  v is a quadratic form in residuals whose covariance is [i = j] - w_i - w_j + S, S the sum of w^2;
  the sums over pairs of documents are written out in moments of w.
  """
  share = units_N / units_N.sum()
  square = (share**2).sum()
  pairs = 2 * (share**3).sum() - square**2  # sum of w_i w_j (S - w_i - w_j)^2
  own = (share**2 * ((1 + square - 2 * share) ** 2 - (square - 2 * share) ** 2)).sum()
  return float((1 - square) ** 2 / (pairs + own))
