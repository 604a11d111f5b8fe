"""Do experts specialise by domain, and which work together: statistics of counted choices.

The mutual information between domain and expert is that of a token drawn from a domain drawn
evenly: I = mean over domains of KL(p(expert | domain) || mean of p). 0 if every domain uses the
experts alike, ln(number of domains) if no two share one.

Finite counts make it positive without any specialisation, and tokens of one document are alike, so
the number of tokens says little about by how much. What chance gives is measured by dealing the
domain labels out anew among the documents: `null_mean` is the bias, `p_value` the share of deals
that reach the observed value. Plain NumPy, for reports.
"""

import dataclasses
import math
import os
import pathlib

import numpy as np

SPECIALISATION = "specialisation.npz"
MAX_DOCUMENTS = 1000
NUM_DEALS = 400
SEED = 20250612


@dataclasses.dataclass(frozen=True)
class Choices:
  """What routers chose on held-out text.

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


def save(choices: Choices, run_folder: pathlib.Path) -> pathlib.Path:
  """Writes specialisation.npz (compressed, replaced whole) and returns its path."""
  path = run_folder / SPECIALISATION
  temporary = path.with_suffix(".tmp.npz")
  np.savez_compressed(
    temporary,
    domains=np.array(choices.domains),
    document_domain=choices.domain_N,
    document_tokens=choices.tokens_N,
    expert_by_document=choices.expert_NLE,
    expert_by_domain=choices.by_domain(),
    co_activation=choices.pair_LEE,
    experts_per_token=choices.experts_per_token,
  )
  os.replace(temporary, path)
  return path


def load(run_folder: pathlib.Path) -> Choices | None:
  """What `save` wrote; None if there is none."""
  path = pathlib.Path(run_folder) / SPECIALISATION
  if not path.is_file():
    return None
  with np.load(path) as saved:
    return Choices(
      domains=tuple(str(name) for name in saved["domains"]),
      domain_N=saved["document_domain"],
      tokens_N=saved["document_tokens"],
      expert_NLE=saved["expert_by_document"],
      pair_LEE=saved["co_activation"],
      experts_per_token=int(saved["experts_per_token"]),
    )


def mutual_information(counts_DE: np.ndarray) -> np.ndarray | np.floating:
  """Nats, over the last two axes [domains, experts]; domains weigh the same, empty ones nothing."""
  counts = np.asarray(counts_DE, np.float64)
  total = counts.sum(-1, keepdims=True)
  share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
  num_domains = (total > 0).sum(-2, keepdims=True)
  mean = share.sum(-2, keepdims=True) / np.maximum(num_domains, 1)
  ratio = np.divide(share, mean, out=np.ones_like(share), where=share > 0)
  return (share * np.log(ratio)).sum((-1, -2)) / np.maximum(num_domains, 1)[..., 0, 0]


def specialisation(choices: Choices) -> list[dict]:
  """A row a MoE layer: information, null_mean, null_high (95 %), excess, share, p_value.

  `excess` is information minus null_mean in nats; `share` is excess over ln(domains). Rows with
  fewer than two domains are None but for their layer.
  """
  layers = choices.expert_NLE.shape[1]
  keys = ("information", "null_mean", "null_high", "excess", "share", "p_value")
  if len(choices.present) < 2:
    return [{"layer": i + 1} | dict.fromkeys(keys) for i in range(layers)]
  observed = mutual_information(choices.by_domain())
  rng = np.random.default_rng(SEED)
  counts_NX = choices.expert_NLE.reshape(len(choices.domain_N), -1).astype(np.float64)
  member_DN = (np.arange(len(choices.domains))[:, None] == choices.domain_N).astype(np.float64)
  shape = (len(choices.domains), *choices.expert_NLE.shape[1:])
  null = np.empty((NUM_DEALS, layers))
  for deal in range(NUM_DEALS):
    dealt_DX = member_DN[:, rng.permutation(member_DN.shape[1])] @ counts_NX
    null[deal] = mutual_information(dealt_DX.reshape(shape).swapaxes(0, 1))
  bound = math.log(len(choices.present))
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
      "p_value": float((1 + (null[:, i] >= observed[i] - 1e-12).sum()) / (1 + NUM_DEALS)),
    })  # fmt: skip
  return rows


def preference(choices: Choices, layer: int) -> np.ndarray:
  """log2 of p(expert | domain) over its mean over domains, [present domains, experts].

  0 is even use; an expert no token of a domain chose is -inf; one nobody chose is nan.
  """
  counts = choices.by_domain()[layer][choices.present].astype(np.float64)
  share = counts / counts.sum(-1, keepdims=True)
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.log2(share / share.mean(0))


def lift(choices: Choices, layer: int) -> np.ndarray:
  """Tokens that chose two experts together over what independent choices would give, [E, E].

  Independent means: pairs in proportion to the product of the two loads, with as many pairs in all
  as there are. nan on the diagonal and where an expert got nothing.
  """
  pairs = choices.pair_LEE[layer].astype(np.float64)
  load = np.diag(pairs).copy()
  np.fill_diagonal(pairs, 0)
  expected = np.outer(load, load)
  np.fill_diagonal(expected, 0)
  if not pairs.any():
    return np.full_like(pairs, np.nan)
  expected *= pairs.sum() / expected.sum()
  return np.divide(pairs, expected, out=np.full_like(pairs, np.nan), where=expected > 0)


def pair_information(choices: Choices, layer: int) -> float | None:
  """Nats by which pairs differ from independent ones (KL over pairs); None for K = 1."""
  ratio = lift(choices, layer)
  pairs = choices.pair_LEE[layer].astype(np.float64)
  np.fill_diagonal(pairs, 0)
  if not pairs.any():
    return None
  share, chosen = pairs / pairs.sum(), pairs > 0
  return float((share[chosen] * np.log(ratio[chosen])).sum())
