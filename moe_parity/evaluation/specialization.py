"""Expert specialization by domain, and which experts are chosen together, from routing counts.

Mutual information of domain and expert, for a token of a domain drawn uniformly: I = mean over
domains of KL(p(expert | domain) || mean of p), in nats. 0 if every domain uses the experts alike,
ln(number of domains) if no two domains share an expert.

Finite counts make it positive without any specialization, and tokens of one document resemble each
other, so the number of tokens does not tell the bias. A permutation test does: domain labels are
permuted among the documents; `null_mean` is the bias, `p_value` the share of permutations that
reach the observed value. Plain NumPy, for reports.
"""

import dataclasses
import math
import pathlib

import numpy as np

from moe_parity import files
from moe_parity.data.checked_npz import read_arrays

SPECIALIZATION = "specialization.npz"
OLDER_NAME = "specialisation.npz"  # of runs made before the package spelled it the American way
MAX_DOCUMENTS = 1000
NUM_PERMUTATIONS = 400
SEED = 20250612


@dataclasses.dataclass(frozen=True)
class RoutingCounts:
  """Which experts routers chose on held-out text.

  Attributes:
    domains: names. domain_N: index of each document's domain. tokens_N: tokens counted of it.
    expert_NLE: assignments by document, MoE layer and expert.
    pair_LEE: tokens that chose both experts; the loads on the diagonal.
    experts_per_token: K.
  """

  domains: tuple[str, ...]
  domain_N: np.ndarray
  tokens_N: np.ndarray
  expert_NLE: np.ndarray
  pair_LEE: np.ndarray
  experts_per_token: int

  @property
  def present(self) -> np.ndarray:
    """Indices of the domains that have a counted token."""
    return np.unique(self.domain_N[self.tokens_N > 0])

  def by_domain(self) -> np.ndarray:
    """Assignments [MoE layers, domains, experts]; a domain without documents has zeros."""
    counts = np.zeros((len(self.domains), *self.expert_NLE.shape[1:]), np.int64)
    np.add.at(counts, self.domain_N, self.expert_NLE)
    return counts.swapaxes(0, 1)


def save(counts: RoutingCounts, run_folder: pathlib.Path) -> pathlib.Path:
  """Writes specialization.npz (compressed, atomically) and returns its path."""
  path = run_folder / SPECIALIZATION
  files.write_npz(
    path,
    domains=np.array(counts.domains),
    document_domain=counts.domain_N,
    document_tokens=counts.tokens_N,
    expert_by_document=counts.expert_NLE,
    expert_by_domain=counts.by_domain(),
    co_activation=counts.pair_LEE,
    experts_per_token=counts.experts_per_token,
  )
  return path


def load(run_folder: pathlib.Path) -> RoutingCounts | None:
  """What `save` wrote; None if there is none.

  Raises:
    UserError: it is damaged.
  """
  paths = (pathlib.Path(run_folder) / name for name in (SPECIALIZATION, OLDER_NAME))
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    return None
  names = (
    "domains", "document_domain", "document_tokens", "expert_by_document", "co_activation",
    "experts_per_token",
  )  # fmt: skip
  way_out = f"moe-parity evaluate {run_folder} --routing counts again"
  saved = read_arrays(path, names, way_out)
  return RoutingCounts(
    domains=tuple(str(name) for name in saved["domains"]),
    domain_N=saved["document_domain"],
    tokens_N=saved["document_tokens"],
    expert_NLE=saved["expert_by_document"],
    pair_LEE=saved["co_activation"],
    experts_per_token=int(saved["experts_per_token"]),
  )


def mutual_information(counts_DE: np.ndarray) -> np.ndarray | np.floating:
  """In nats, over the last two axes [domains, experts]; domains have equal weight, empty ones 0."""
  counts = np.asarray(counts_DE, np.float64)
  total = counts.sum(-1, keepdims=True)
  share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
  num_domains = (total > 0).sum(-2, keepdims=True)
  mean = share.sum(-2, keepdims=True) / np.maximum(num_domains, 1)
  ratio = np.divide(share, mean, out=np.ones_like(share), where=share > 0)
  return (share * np.log(ratio)).sum((-1, -2)) / np.maximum(num_domains, 1)[..., 0, 0]


def specialization_by_layer(counts: RoutingCounts) -> list[dict]:
  """A row a MoE layer: information, null_mean, null_high (95 %), excess, share, p_value.

  `excess` is information minus null_mean in nats; `share` is excess over ln(domains). Rows with
  fewer than two domains are None but for their layer.
  """
  layers = counts.expert_NLE.shape[1]
  keys = ("information", "null_mean", "null_high", "excess", "share", "p_value")
  if len(counts.present) < 2:
    return [{"layer": i + 1} | dict.fromkeys(keys) for i in range(layers)]
  observed = mutual_information(counts.by_domain())
  rng = np.random.default_rng(SEED)
  counts_NX = counts.expert_NLE.reshape(len(counts.domain_N), -1).astype(np.float64)
  member_DN = (np.arange(len(counts.domains))[:, None] == counts.domain_N).astype(np.float64)
  shape = (len(counts.domains), *counts.expert_NLE.shape[1:])
  null = np.empty((NUM_PERMUTATIONS, layers))
  for index in range(NUM_PERMUTATIONS):
    permuted_DX = member_DN[:, rng.permutation(member_DN.shape[1])] @ counts_NX
    null[index] = mutual_information(permuted_DX.reshape(shape).swapaxes(0, 1))
  bound = math.log(len(counts.present))
  rows = []
  for i in range(layers):
    excess = float(observed[i] - null[:, i].mean())
    rows.append({
      "layer": i + 1,
      "information": float(observed[i]),
      "null_mean": float(null[:, i].mean()),
      "null_high": float(np.quantile(null[:, i], 0.95)),
      "excess": excess,
      "share": excess / bound,
      "p_value": float((1 + (null[:, i] >= observed[i] - 1e-12).sum()) / (1 + NUM_PERMUTATIONS)),
    })  # fmt: skip
  return rows


def preference(counts: RoutingCounts, layer: int) -> np.ndarray:
  """log2 of p(expert | domain) over its mean over domains, [present domains, experts].

  0 is even use; -inf where no token of the domain chose the expert; NaN where no token at all did.
  """
  by_domain = counts.by_domain()[layer][counts.present].astype(np.float64)
  share = by_domain / by_domain.sum(-1, keepdims=True)
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.log2(share / share.mean(0))


def coactivation_lift(counts: RoutingCounts, layer: int) -> np.ndarray:
  """Tokens that chose two experts together over what independent counts would give, [E, E].

  Independent: pairs in proportion to the product of the two loads, and as many pairs in all. NaN on
  the diagonal and for experts without tokens.
  """
  pairs = counts.pair_LEE[layer].astype(np.float64)
  load = np.diag(pairs).copy()
  np.fill_diagonal(pairs, 0)
  expected = np.outer(load, load)
  np.fill_diagonal(expected, 0)
  if not pairs.any():
    return np.full_like(pairs, np.nan)
  expected *= pairs.sum() / expected.sum()
  return np.divide(pairs, expected, out=np.full_like(pairs, np.nan), where=expected > 0)


def pair_information(counts: RoutingCounts, layer: int) -> float | None:
  """Nats by which pairs differ from independent ones (KL over pairs); None for K = 1."""
  ratio = coactivation_lift(counts, layer)
  pairs = counts.pair_LEE[layer].astype(np.float64)
  np.fill_diagonal(pairs, 0)
  if not pairs.any():
    return None
  share, chosen = pairs / pairs.sum(), pairs > 0
  return float((share[chosen] * np.log(ratio[chosen])).sum())
