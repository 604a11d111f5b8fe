"""FLOPs of a program's matrix products, counted in two ways that know nothing of a model's formula:
from what JAX traces (a jaxpr) and from what XLA compiles (HLO text)."""

import math

import jax

from moe_parity.aot import hlo
from moe_parity.aot.hlo_flops import instruction_flops


def of_trace(function, *args) -> int:
  """Of every dot_general that a call would run; loops of unknown length are taken not to run, and
  what differs between platforms to be that of none in particular."""
  return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_kernels(jaxpr) -> int:
  """What all Pallas kernels of a traced program estimate of themselves."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "pallas_call":
      total += equation.params["cost_estimate"].flops
    else:
      inner = (_jaxpr_of(value) for value in equation.params.values())
      total += sum(of_kernels(each) for each in inner if each is not None)
  return total


def of_compiled(text: str) -> float:
  """Of every product in a compiled module's text, loop bodies as often as they run."""
  module = hlo.parse(text)
  return _of_computation(module, module.entry)


def _of_jaxpr(jaxpr) -> int:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    lengths = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * lengths * math.prod(equation.outvars[0].aval.shape)
  if name == "conv_general_dilated":
    raise NotImplementedError("a convolution in a language model")
  if name == "while":
    return 0
  if name == "cond":
    platforms = params.get("branches_platforms")  # of a `lax.platform_dependent`
    taken = params["branches"] if platforms is None else [params["branches"][platforms.index(None)]]
    return max(_of_jaxpr(branch.jaxpr) for branch in taken)
  inner = sum(_of_jaxpr(jaxpr) for value in params.values() if (jaxpr := _jaxpr_of(value)))
  return inner * (params["length"] if name == "scan" else 1)


def _jaxpr_of(value):
  """The jaxpr that a parameter of an equation is, closed or not; None for anything else."""
  value = getattr(value, "jaxpr", value)
  return value if hasattr(value, "eqns") else None


def _of_computation(module, name: str) -> float:
  total = 0.0
  shapes = {i.name: i.shape for i in module.computations[name]}
  for instruction in module.computations[name]:
    if instruction.opcode == "while":
      trips = hlo.trip_count(module, instruction)
      total += trips * _of_computation(module, instruction.attribute("body")) if trips else 0
    elif instruction.opcode == "call":
      total += _of_computation(module, instruction.attribute("to_apply"))
    elif instruction.opcode == "conditional":
      total += max(_of_computation(module, branch) for branch in hlo.called(instruction))
    else:
      total += instruction_flops(module, instruction, shapes)
  return total
