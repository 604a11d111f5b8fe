"""Experts spread over simulated CPU devices against the same experts on one, forward and backward.

    JAX_NUM_CPU_DEVICES=8 python -m moe_parity.benchmarks.exchange

The devices share the machine's cores, so the same work is done either way: a ratio is what moving
tokens about costs here, where a wire is a copy. It says nothing of an accelerator's links.
"""

import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from moe_parity.benchmarks.moe_layer import Shape, draw_routing, with_gradients
from moe_parity.benchmarks.timing import interleaved, ratio
from moe_parity.experts.expert_ffn import expert_ffn
from moe_parity.experts.expert_parallel import expert_parallel_ffn

SHAPE = Shape(64, 6, 256, 64)


def run(shape=SHAPE, repeats: int = 9, num_tokens: int = 4096, skews=(0.0, 0.4)) -> list[dict]:
  """A row for each exchange and skew: milliseconds on one device and on all, and their ratio.

  Args:
    shape: as many experts as a multiple of the devices.
    num_tokens: in all, over the devices there are.
    skews: standard deviation of the experts' log-popularity; 0 is fair.
  """
  return [
    _row(Shape(*shape), token_dispatch, repeats, num_tokens, skew)
    for token_dispatch in ("all_to_all", "all_gather")
    for skew in skews
  ]


def _row(shape: Shape, token_dispatch: str, repeats: int, num_tokens: int, skew) -> dict:
  e, _, d, i = shape
  rng = np.random.default_rng(0)
  num_devices = len(jax.devices())
  mesh = jax.make_mesh((num_devices,), ("expert",), axis_types=(AxisType.Auto,))
  split = PartitionSpec("expert")
  there = jax.sharding.NamedSharding(mesh, split)
  routing, gates = draw_routing(shape, num_tokens, skew, rng)
  sizes = (num_tokens, d), (num_tokens, d), (e, 2, i, d), (e, i, d)
  dy, x, *weights = (rng.normal(size=size).astype(np.float32) * size[-1] ** -0.5 for size in sizes)
  arguments = dy, routing, x, gates, *weights

  def spread(routing, x, gates, *weights):
    def local(routing, x, gates, *weights):
      return expert_parallel_ffn(
        x, routing, gates, *weights, num_experts=e, token_dispatch=token_dispatch
      )[0]

    return jax.shard_map(
      local, mesh=mesh, in_specs=(split,) * 5, out_specs=split, check_vma=False
    )(routing, x, gates, *weights)  # fmt: skip

  one = with_gradients(lambda routing, x, gates, *w: expert_ffn(x, routing, gates, *w))
  all_of_them = with_gradients(spread)
  on_one, on_all = map(jnp.asarray, arguments), (jax.device_put(a, there) for a in arguments)
  on_one, on_all = tuple(on_one), tuple(on_all)
  samples = interleaved({"one": lambda: one(*on_one), "all": lambda: all_of_them(*on_all)}, repeats)
  return {
    "shape": f"E {e} K {shape.experts_per_token} D {d} I {i}",
    "tokens": num_tokens,
    "devices": num_devices,
    "token_dispatch": token_dispatch,
    "skew": skew,
    "one_device_ms": 1e3 * statistics.median(samples["one"]),
    "all_devices_ms": 1e3 * statistics.median(samples["all"]),
    **ratio(samples, "all", "one"),
  }


if __name__ == "__main__":
  print(json.dumps(run()))
