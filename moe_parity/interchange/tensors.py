"""Which tensor of a Hugging Face file is which slice of our weights. Read forward it exports, read
backward it imports, so the two cannot disagree.

Hugging Face stores a matrix as [out, in], one tensor a layer and expert; ours are [in, out] and
stacked over the repeats of a layer pattern (`model/layer_stack.py`).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx

from moe_parity.errors import UserError
from moe_parity.model.layer_stack import split_layout
from moe_parity.planning.architecture import Architecture

LLAMA, QWEN2_MOE, OWN, MIXTRAL = "llama", "qwen2_moe", "moe_parity", "mixtral"
ERNIE = "ernie4_5_moe"
NO_SHARED = 8  # width of the all-zero shared expert that stands for none in a Qwen2Moe file

Leaves = dict[tuple, np.ndarray]  # path of a leaf of our state -> its array


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file.

  Attributes:
    name: in the file.
    shape: in the file.
    path: of the leaf of ours that it is part of; () for one that is zero and has no part in ours.
    index: where in that leaf.
    is_transposed: its axes are the other way round in ours.
    factor: what it is in the file, over what it is in ours; a power of two, so nothing is rounded.
    d_head: rows of a head whose rotary pairs lie next to each other in the file and half a head
      apart in ours; 0 where both have the same order.
  """

  name: str
  shape: tuple[int, ...]
  path: tuple = ()
  index: tuple[int, ...] = ()
  is_transposed: bool = False
  factor: float = 1.0
  d_head: int = 0

  def read(self, leaves: Leaves) -> np.ndarray:
    """The tensor as it is written to a file, float32."""
    if not self.path:
      return np.zeros(self.shape, np.float32)
    array = np.asarray(leaves[self.path][self.index], np.float32)
    array = array.T if self.is_transposed else array
    if self.d_head:
      array = _swap_axes(array, (2, self.d_head // 2))
    return np.ascontiguousarray(array * np.float32(self.factor)).reshape(self.shape)

  def write(self, leaves: Leaves, array: np.ndarray) -> None:
    """Puts the tensor of a file into our leaves.

    Raises:
      UserError: it should be zero and is not.
    """
    if self.path:
      if self.d_head:
        array = _swap_axes(array, (self.d_head // 2, 2))
      array = array.T if self.is_transposed else array
      leaf = leaves[self.path]
      leaf[self.index] = (array / self.factor).reshape(leaf[self.index].shape)
    elif array.any():
      raise UserError(
        f"tensor {self.name} is not zero, and this project's model has no such weight (no biases,"
        " an ungated shared expert); only a model without it can be imported"
      )


def _swap_axes(array: np.ndarray, head: tuple[int, int]) -> np.ndarray:
  """The rows of every head, read as a matrix of this shape, in the order of its transpose."""
  return array.reshape(-1, *head, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def tensors(architecture: Architecture, model_type: str, *, learned_scale: bool = False):
  """Every tensor of a file, in the order of the layers (a list of `Tensor`).

  Args:
    model_type: "llama", "qwen2_moe", "ernie4_5_moe", "mixtral" or "moe_parity", as in config.json.
    learned_scale: the model's `routed_scale` is "learned"; "moe_parity" alone can hold it.
  """
  d, v = architecture.d_model, architecture.vocab_size
  found = [Tensor("model.embed_tokens.weight", (v, d), ("embedding",), ())]
  for layer, (prefix, repeat, is_moe) in enumerate(_places(architecture)):
    name = f"model.layers.{layer}."
    make = _Layer(architecture, model_type, name, prefix, repeat)
    found += make.attention()
    found += make.experts(learned_scale) if is_moe else make.dense()
  found.append(Tensor("model.norm.weight", (d,), ("final_norm", "scale"), ()))
  found.append(Tensor("lm_head.weight", (v, d), ("head",), (), True))
  return found


def _places(architecture: Architecture) -> Iterator[tuple[tuple, int, bool]]:
  """(path of the stack it is in, repeat, whether it is MoE) of each layer, the first first."""
  for segment, (pattern, repeats) in enumerate(split_layout(architecture.moe_layers)):
    for repeat in range(repeats):
      for place, is_moe in enumerate(pattern):
        yield ("segments", segment, "layers", place), repeat, is_moe


@dataclasses.dataclass(frozen=True)
class _Layer:
  """Makes the tensors of one layer."""

  architecture: Architecture
  model_type: str
  name: str
  prefix: tuple
  repeat: int

  def of(self, name, shape, *path, index=(), transposed=True, factor=1.0, d_head=0) -> Tensor:
    path, index = (*self.prefix, *path), (self.repeat, *index)
    return Tensor(self.name + name, shape, path, index, transposed, factor, d_head)

  def attention(self) -> list[Tensor]:
    a, d = self.architecture, self.architecture.d_model
    widths = {"query": a.num_heads * a.d_head, "key": a.num_kv_heads * a.d_head}
    widths["value"] = widths["key"]
    found = [
      self.of(f"{theirs}.weight", (d,), ours, "scale", transposed=False)
      for theirs, ours in (
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "feedforward_norm"),
      )
    ]
    for ours, width in widths.items():
      theirs = f"self_attn.{ours[0]}_proj"
      is_rotated = self.model_type == ERNIE and ours != "value"
      d_head = a.d_head if is_rotated else 0
      found.append(self.of(f"{theirs}.weight", (width, d), "attention", ours, d_head=d_head))
      if self.model_type == QWEN2_MOE:
        found.append(Tensor(f"{self.name}{theirs}.bias", (width,)))
    out = (d, widths["query"])
    return [*found, self.of("self_attn.o_proj.weight", out, "attention", "out")]

  def swiglu(self, theirs: str, width: int, *path, factor=1.0) -> list[Tensor]:
    d = self.architecture.d_model
    return [
      self.of(f"{theirs}.gate_proj.weight", (width, d), *path, "gate"),
      self.of(f"{theirs}.up_proj.weight", (width, d), *path, "up"),
      self.of(f"{theirs}.down_proj.weight", (d, width), *path, "down", factor=factor),
    ]

  def dense(self) -> list[Tensor]:
    return self.swiglu("mlp", self.architecture.d_ffn, "feedforward")

  def experts(self, learned_scale: bool) -> list[Tensor]:
    a, d, i = self.architecture, self.architecture.d_model, self.architecture.d_expert
    is_mixtral = self.model_type == MIXTRAL
    block = "block_sparse_moe" if is_mixtral else "mlp"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    found = [self.of(f"{block}.gate.weight", (a.num_experts, d), "feedforward", "router")]
    for e in range(a.num_experts):
      theirs = f"{block}.experts.{e}"
      w_in, w_out = ("feedforward", "experts_in"), ("feedforward", "experts_out")
      for half, name in enumerate((gate, up)):
        shape = (i, d)
        found.append(
          self.of(f"{theirs}.{name}.weight", shape, *w_in, index=(e, half), transposed=False)
        )
      found.append(self.of(f"{theirs}.{down}.weight", (d, i), *w_out, index=(e,)))
    return found + self._beside_experts(learned_scale)

  def _beside_experts(self, learned_scale: bool) -> list[Tensor]:
    a, d, path = self.architecture, self.architecture.d_model, ("feedforward", "shared")
    if self.model_type == MIXTRAL:
      return []
    if self.model_type == QWEN2_MOE:
      # Their shared expert is times sigmoid(gate x): a zero gate is 1/2, twice the weights undo it.
      gate = Tensor(f"{self.name}mlp.shared_expert_gate.weight", (1, d))
      if a.d_shared:
        return [gate, *self.swiglu("mlp.shared_expert", a.d_shared, *path, factor=2.0)]
      zero = {"gate_proj": (NO_SHARED, d), "up_proj": (NO_SHARED, d), "down_proj": (d, NO_SHARED)}
      theirs = f"{self.name}mlp.shared_expert"
      return [gate, *(Tensor(f"{theirs}.{n}.weight", shape) for n, shape in zero.items())]
    bias = ("feedforward", "selection_bias")
    if self.model_type == ERNIE:
      name, shape = "mlp.moe_statics.e_score_correction_bias", (1, a.num_experts)
      found = [self.of(name, shape, *bias, transposed=False)]
      return found + (self.swiglu("mlp.shared_experts", a.d_shared, *path) if a.d_shared else [])
    found = [self.of("mlp.selection_bias", (a.num_experts,), *bias, transposed=False)]
    if learned_scale:
      found.append(self.of("mlp.routed_scale", (1,), "feedforward", "routed_scale"))
    if a.d_shared:
      found += self.swiglu("mlp.shared_expert", a.d_shared, *path)
    return found


def leaves_of(*states: Any) -> Leaves:
  """The leaves of params and buffers by path, as NumPy arrays."""
  flat = [item for state in states for item in nnx.to_flat_state(state)]
  return {tuple(path): np.asarray(variable.get_value()) for path, variable in flat}


def zero_leaves(*states: Any) -> Leaves:
  """Leaves to fill, of abstract params and buffers."""
  flat = [item for state in states for item in nnx.to_flat_state(state)]
  return {tuple(path): np.zeros(v.get_value().shape, np.float32) for path, v in flat}


def with_leaves(state: Any, leaves: Leaves) -> Any:
  """An abstract state with its arrays put in."""
  flat = nnx.to_flat_state(state)
  return nnx.from_flat_state([(path, v.replace(leaves[tuple(path)])) for path, v in flat])
