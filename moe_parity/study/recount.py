"""Counts parameters and FLOPs again from the arrays in a checkpoint, never from a plan.

Only three things are taken on trust because nothing on disk shows them: how many experts a token
chose (K), how many heads share the attention width (for the softmax term of `paper_full`), and how
many queries attention computed at a time (for `executed`, which is counted whatever the budget's
convention).
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

import jax

from moe_parity.errors import UserError

# Which kinds of array are parameters under a convention (vocabulary never is).
PARAMS = {"paper": ("matrices",), "paper_full": ("matrices", "router", "norms")}
PARAMS |= {"exact": PARAMS["paper_full"], "executed": PARAMS["paper"]}
FLOPS = {
  "paper": ("matrices", "scores"),
  "paper_full": ("matrices", "scores", "router", "softmax", "elementwise"),
  "exact": ("matrices", "scores", "router"),
  "executed": ("matrices", "computed_scores", "router", "head"),
}
BYTES_PER_PARAM = 4  # checkpoints hold float32


def kind_of(name: str) -> str:
  """What an array is, by its name in the checkpoint."""
  part = name.rpartition(".")[2]
  kinds = {
    "embedding": "vocabulary",
    "head": "vocabulary",
    "router": "router",
    "scale": "norms",
    "routed_scale": "scales",
    "experts_in": "experts",
    "experts_out": "experts",
    **dict.fromkeys(("query", "key", "value", "out", "gate", "up", "down"), "matrices"),
  }
  if part not in kinds:
    raise UserError(f"array {name!r} is of no known kind; the certificate cannot count it")
  return kinds[part]


def count(shapes: Mapping[str, Sequence[int]], plan: dict) -> dict[str, int]:
  """num_params, num_active_params, train_flops_per_token, executed_flops_per_token,
  num_params_with_vocabulary, num_params_with_router (and norms) and weight_bytes from array shapes.

  Args:
    shapes: name -> shape of every parameter; layers are stacked on the first axis.
    plan: the arm's plan.json, for K, the number of heads, S, the queries of an attention block and
      the convention.
  """
  architecture, seq_len = plan["architecture"], plan["seq_len"]
  chosen, num_experts = architecture["experts_per_token"], architecture["num_experts"]
  total = dict.fromkeys(("matrices", "experts", "router", "norms", "scales", "vocabulary"), 0)
  attention_width = layers = head = 0
  for name, shape in shapes.items():
    total[kind_of(name)] += math.prod(shape)
    head += math.prod(shape) if name.rpartition(".")[2] == "head" else 0
    if name.endswith(".attention.out"):  # [layers, H*Q, D]
      layers += shape[0]
      attention_width += shape[0] * shape[1]
      d_model = shape[2]
  active_experts = total["experts"] * chosen // num_experts if num_experts else 0
  forward = {
    "matrices": 2 * (total["matrices"] + active_experts),
    "scores": 4 * attention_width * seq_len,
    "computed_scores": 2 * attention_width * (seq_len + _query_block(plan)),
    "head": 2 * head,
    "router": 2 * total["router"],
    "softmax": 3 * layers * architecture["num_heads"] * seq_len,
    "elementwise": 15 * layers * d_model,
  }
  kinds = PARAMS[plan["convention"]]
  outside_experts = sum(total[kind] for kind in kinds)
  return {
    "num_params": outside_experts + total["experts"],
    "num_active_params": outside_experts + active_experts,
    "train_flops_per_token": 3 * sum(forward[kind] for kind in FLOPS[plan["convention"]]),
    "executed_flops_per_token": 3 * sum(forward[kind] for kind in FLOPS["executed"]),
    "num_params_with_vocabulary": outside_experts + total["experts"] + total["vocabulary"],
    "num_params_with_router": sum(total.values()) - total["vocabulary"] - total["scales"],
    "weight_bytes": BYTES_PER_PARAM * sum(total.values()),
  }


def _query_block(plan: dict) -> int:
  """Queries computed at a time; a block that does not divide S is all of S."""
  block = plan.get("attention_block", 512)  # plans before it was written down had this default
  return block if plan["seq_len"] % block == 0 else plan["seq_len"]


def checkpoint_shapes(folder: pathlib.Path, step: int) -> dict[str, tuple[int, ...]]:
  """Shapes of the trained parameters in the checkpoint of `step`, without reading the arrays.

  Raises:
    UserError: the run has no such checkpoint.
  """
  from orbax.checkpoint import v1 as ocp

  path = (folder / "checkpoints" / str(step)).resolve()
  if not path.is_dir():
    raise UserError(f"{folder}/checkpoints has no checkpoint of step {step}; run the arm again")
  metadata = ocp.checkpointables_metadata(path).metadata["model"]["params"]
  shapes = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(metadata)[0]:
    keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
    shapes[".".join(keys[:-1])] = tuple(leaf.shape)  # the last key names the value of a Param
  return shapes
