"""What has to be set before JAX makes its first array."""

from moe_parity.data.storage import cache_folder


def start_jax() -> None:
  """Keeps compiled programs in the cache folder, so that a second start does not compile again;
  on a CPU also keeps memory between steps instead of giving it back and faulting it in again."""
  import jax

  from moe_parity.parallel import libtpu

  libtpu.quiet()
  if jax.default_backend() == "cpu":
    from moe_parity.parallel.host_memory import keep_large_buffers

    keep_large_buffers()

  jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
