"""What an architecture costs: parameters and FLOPs a token, under a convention that is named.

The same model has several honest sizes. Which one a number means is its convention:

  paper       arXiv:2506.12119 Eq. (1)-(6). Attention and feed-forward matrices only: no vocabulary,
              router or norm. FLOPs are 2 an active parameter plus attention scores over the whole
              context, with no causal half.
  paper_full  what most of the paper's tables hold: router E d and RMSNorm (2L + 1) d join N and
              N_a. FLOPs gain the router's product, 3 a score (softmax) and 15 a channel and layer
              (norms, residuals): M_train = 6 (N_a + router) + 12 L d S + 9 L H S + 45 L d.
  exact       every parameter of the model this project builds, vocabulary apart: matrices, router,
              norm scales, no biases. FLOPs are its matrix products: 2 an active matrix parameter,
              the router's among them, plus attention scores.
  executed    N and N_a as in `paper`. FLOPs are every matrix product of a training step as the
              program computes them: 2 N_a, the router's 2 E d a MoE layer, the output head's 2 V d,
              and attention scores of the query blocks (`query_block`), not of the full square.

Not in `executed`: what is computed twice (rematerialization, the extra routing pass of gradient
accumulation); rows that fill experts up to a whole number of slots, and heads that a TPU's kernel
fills up to 128 channels, both multiplied by zero; and everything that is no matrix product. A plan
is the same on every platform, so attention is counted in blocks of `model.attention_block` queries.
A TPU's kernel takes 512, 256 or 128 at a time, the first that divides S: with the default block the
same count where 512 divides S and at an S of 128 or 256; at others, such as 640, it computes less
than is counted. So does cuDNN on a GPU, whose tiles are smaller (`attention_choice.py`).
"""

from __future__ import annotations

import dataclasses

from moe_parity.errors import UserError
from moe_parity.fields.check import check_kind
from moe_parity.fields.choices import CONVENTIONS
from moe_parity.fields.kinds import Choice
from moe_parity.planning.architecture import Architecture

ATTENTION_BLOCK = 512  # queries at a time where a config's model.attention_block says nothing
# Parts of a model that are parameters, and products that are FLOPs, under a convention.
_MATRICES = ("attention", "dense_ffn", "routed_experts", "shared_expert")
_PARAMS = {"paper": _MATRICES, "executed": _MATRICES}
_PARAMS["paper_full"] = _PARAMS["exact"] = (*_MATRICES, "router", "norms")
_FLOPS = {
  "paper": ("parameters", "scores"),
  "paper_full": ("parameters", "scores", "router", "softmax", "elementwise"),
  "exact": ("parameters", "scores", "router"),
  "executed": ("parameters", "scores", "router", "head"),
}


@dataclasses.dataclass(frozen=True)
class Cost:
  """The price of an architecture at one sequence length, under one convention.

  Attributes:
    convention: which parameters and FLOPs are counted, see the module.
    num_params: all non-vocabulary parameters [N]. num_active_params: those a token uses [N_a].
    activation_rate: N_a / N, in (0, 1].
    forward_flops_per_token, train_flops_per_token: [M] and 3 x [M].
    kappa: forward FLOPs over 2 N_a, what attention (and in `executed` router and head) adds.
    vocabulary_params: embedding and untied head, in no other number of parameters here.
    breakdown: the parts. `params.*` count all parameters of a kind, `active.*` those a token uses,
      `forward.*` forward FLOPs a token. Parts outside the convention are listed too, under
      `outside.*`.
  """

  convention: str
  num_params: int
  num_active_params: int
  activation_rate: float
  forward_flops_per_token: int
  train_flops_per_token: int
  kappa: float
  vocabulary_params: int
  breakdown: dict[str, int] = dataclasses.field(hash=False)

  @property
  def num_params_with_vocabulary(self) -> int:
    """N and the vocabulary's parameters."""
    return self.num_params + self.vocabulary_params

  def train_flops(self, num_tokens: int) -> int:
    """C = M_train x tokens, in FLOPs."""
    return self.train_flops_per_token * num_tokens


def check_convention(convention: str) -> None:
  """Raises UserError unless `convention` is one of CONVENTIONS."""
  check_kind("convention", convention, Choice(CONVENTIONS))


def counts_router_and_norms(convention: str) -> bool:
  """Whether router and norm scales are parameters of N and N_a."""
  return "router" in _PARAMS[convention]


def query_block(seq_len: int, attention_block: int) -> int:
  """Queries that attention computes at a time, each block against the keys up to its end.

  A block that does not divide the sequence, or 0, stands for the whole sequence.
  """
  return attention_block if attention_block and seq_len % attention_block == 0 else seq_len


def cost_of(
  architecture: Architecture, seq_len: int, convention: str = "paper", attention_block: int = 0
) -> Cost:
  """Counts the parameters of `architecture` and its FLOPs a token at `seq_len`.

  Attention holds d H Q for queries, 2 d H_kv Q for keys and values and H Q d for the output; with
  H Q = d and no sharing that is the paper's 4 d^2. Scores and their use cost 4 L H Q S forward;
  computed in blocks of b queries a query meets (S + b) / 2 keys on average in place of S.

  Args:
    attention_block: queries computed at a time (`model.attention_block`), 0 for all S. Only
      `executed` asks for it: the other conventions count the full square.
  Raises:
    UserError: an unknown convention, or a seq_len that is not a whole number above 0.
  """
  check_convention(convention)
  if not isinstance(seq_len, int) or isinstance(seq_len, bool) or seq_len < 1:
    raise UserError(f"seq_len={seq_len!r} is not a whole number above 0; give tokens a sequence")
  block = query_block(seq_len, attention_block) if convention == "executed" else seq_len
  all_params, active_params = _parameters(architecture)
  flops = _forward_flops(architecture, active_params, seq_len, block)
  counted, products = _PARAMS[convention], _FLOPS[convention]
  num_params = sum(all_params[part] for part in counted)
  num_active_params = sum(active_params[part] for part in counted)
  forward = sum(flops[part] for part in products)
  return Cost(
    convention=convention,
    num_params=num_params,
    num_active_params=num_active_params,
    activation_rate=num_active_params / num_params,
    forward_flops_per_token=forward,
    train_flops_per_token=3 * forward,
    kappa=forward / (2 * num_active_params),
    vocabulary_params=2 * architecture.vocab_size * architecture.d_model,
    breakdown=_breakdown(counted, products, all_params, active_params, flops),
  )


def _breakdown(
  counted: tuple[str, ...],
  products: tuple[str, ...],
  all_params: dict[str, int],
  active_params: dict[str, int],
  flops: dict[str, int],
) -> dict[str, int]:
  """`Cost.breakdown` of the parts that count, and of those outside the convention."""
  parts = {f"params.{part}": all_params[part] for part in counted}
  parts |= {f"active.{part}": active_params[part] for part in counted}
  parts |= {f"forward.{part}": flops[part] for part in products}
  outside = {f"params.{part}": n for part, n in all_params.items() if part not in counted}
  outside |= {f"forward.{part}": n for part, n in flops.items() if part not in products}
  return parts | {f"outside.{name}": n for name, n in outside.items()}


def compute_ratio(cost: Cost, reference: Cost) -> float:
  """R_c = M / M_reference. At equal compute an arm trains on 1 / R_c times the reference's tokens.

  Equals (N_a kappa) / (N_a,ref kappa_ref), so r_a kappa_moe / kappa_dense where both have one N;
  the paper prints its Eq. (10) otherwise, which is off by up to 65 %.
  """
  if cost.convention != reference.convention:
    raise UserError(
      f"convention={cost.convention!r} is compared with {reference.convention!r}; "
      f"count both under one convention"
    )
  return cost.forward_flops_per_token / reference.forward_flops_per_token


def _parameters(architecture: Architecture) -> tuple[dict[str, int], dict[str, int]]:
  """Parameters by kind over all layers: all of them, and those one token uses."""
  a = architecture
  queries_and_output = 2 * a.d_model * a.num_heads * a.d_head
  keys_and_values = 2 * a.d_model * a.num_kv_heads * a.d_head
  expert = 3 * a.d_model * a.d_expert
  all_params = {
    "attention": (queries_and_output + keys_and_values) * a.num_layers,
    "dense_ffn": 3 * a.d_model * a.d_ffn * a.num_dense_layers,
    "routed_experts": expert * a.num_experts * a.num_moe_layers,
    "shared_expert": 3 * a.d_model * a.d_shared * a.num_moe_layers,
    "router": a.num_experts * a.d_model * a.num_moe_layers,
    "norms": (2 * a.num_layers + 1) * a.d_model,
  }
  active = all_params | {"routed_experts": expert * a.experts_per_token * a.num_moe_layers}
  return all_params, active


def _forward_flops(
  architecture: Architecture, active: dict[str, int], seq_len: int, block: int
) -> dict[str, int]:
  """Forward FLOPs a token by kind; a multiply and an add count as two.

  Args:
    block: queries that attention computes at a time; seq_len gives the full square.
  """
  a = architecture
  return {
    "parameters": 2 * sum(active[part] for part in _MATRICES),
    "scores": 2 * a.num_layers * a.num_heads * a.d_head * (seq_len + block),
    "router": 2 * active["router"],
    "softmax": 3 * a.num_layers * a.num_heads * seq_len,
    "elementwise": 15 * a.num_layers * a.d_model,
    "head": 2 * a.vocab_size * a.d_model,
  }
