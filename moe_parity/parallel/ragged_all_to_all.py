"""`lax.ragged_all_to_all`, and on CPU, where XLA has none, the same by an all-gather and a gather.

So that the code around it is tested on simulated devices. The stand-in sends everything to
everybody: production on CPU is refused by `resources.exchange.check_exchange`.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from moe_parity.parallel.varying import equally_varying


def ragged_all_to_all(
  operand: Shaped[Array, "N *rest"],
  output: Shaped[Array, "M *rest"],
  send_start_G: Int[Array, " G"],
  send_size_G: Int[Array, " G"],
  write_at_G: Int[Array, " G"],
  receive_size_G: Int[Array, " G"],
  axis_name: str,
) -> Shaped[Array, "M *rest"]:
  """Slice g of `operand` lands in device g's `output` at row write_at_G[g]; the rest of `output`
  stays. Sizes in rows; slice g received has receive_size_G[g]. Not differentiable on CPU."""
  return lax.platform_dependent(
    *equally_varying(operand, output, send_start_G, send_size_G, write_at_G, receive_size_G),
    cpu=functools.partial(_by_all_gather, axis_name),
    default=functools.partial(lax.ragged_all_to_all, axis_name=axis_name),
  )  # fmt: skip


def _by_all_gather(axis_name, operand, output, send_start_G, send_size_G, write_at_G, _):
  me, num = lax.axis_index(axis_name), operand.shape[0]
  operand = lax.all_gather(operand, axis_name, tiled=True)
  start_G, size_G, write_at_G = (
    lax.all_gather(a, axis_name)[:, me] for a in (send_start_G, send_size_G, write_at_G)
  )  # by source
  row_M = jnp.arange(output.shape[0], dtype=jnp.int32)
  offset_GM = row_M[None, :] - write_at_G[:, None]
  hit_GM = (offset_GM >= 0) & (offset_GM < size_G[:, None])
  source_M = jnp.argmax(hit_GM, axis=0).astype(jnp.int32)
  row_M = source_M * num + start_G[source_M] + row_M - write_at_G[source_M]
  hit_M = hit_GM.any(0)
  received = operand[jnp.where(hit_M, row_M, 0)]
  return jnp.where(hit_M.reshape(-1, *[1] * (operand.ndim - 1)), received, output)
