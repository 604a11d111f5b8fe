"""Times one train step of several seeds stacked with vmap against one step of each, in turns, and
writes `stacked_seeds.json`:

  taskset -c 0 python -m moe_parity.benchmarks.stacked_seeds

Seeds of an arm read the same batches, so only the state is stacked. Each round does a few steps
both ways; a ratio is of one round, of CPU and of wall seconds, and above 1 stacking is faster."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the checkout
ARMS = {"mixture_small": ("dense", "moe_20"), "demo": ("dense", "moe_20")}
STEPS = 2  # of every seed, in a round


def seconds(work) -> tuple[float, float]:
  """(wall, CPU) seconds of a function."""
  wall, cpu = time.perf_counter(), time.process_time()
  work()
  return time.perf_counter() - wall, time.process_time() - cpu


def compare(config_name: str, arm_name: str, seeds: int, rounds: int) -> dict:
  """A row of `stacked_seeds.json`."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from moe_parity import config as configs
  from moe_parity.planning.plan import make_plan
  from moe_parity.study.methods.activation_rate import sweep_arms
  from moe_parity.training.build import model_options, optimizer_options, step_options
  from moe_parity.training.state import init_state
  from moe_parity.training.step import make_train_step

  config = configs.load(str(ROOT / "configs" / f"{config_name}.py"))
  if config.study.method != "arms":
    with config.unlocked():
      config.arms = sweep_arms(config)
  plan = make_plan(config, vocab_size=272)
  arm = next(arm for arm in plan.arms if arm.name == arm_name)
  model, optimizer = model_options(config), optimizer_options(config, arm)
  step = make_train_step(arm.architecture, model, optimizer, step_options(config, arm, None), None)
  rows = np.random.default_rng(0).integers(16, 272, (2, arm.batch_sequences, arm.seq_len), np.int32)

  single = [init_state(arm.architecture, model, optimizer, seed, None) for seed in range(seeds)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
  lowered = step.lower(single[0], *rows)
  of_one, one_compile = timed(lowered.compile)
  over_seeds = jax.jit(jax.vmap(step, in_axes=(0, None, None)), donate_argnums=0)
  lowered = over_seeds.lower(stacked, *rows)
  of_all, all_compile = timed(lowered.compile)

  def in_turn():
    for _ in range(STEPS):
      for i in range(seeds):
        single[i], scalars = of_one(single[i], *rows, step.rates)
    losses = scalars["loss"]
    jax.block_until_ready((single, losses))
    return losses

  def at_once():
    nonlocal stacked
    for _ in range(STEPS):
      stacked, scalars = of_all(stacked, *rows)
    jax.block_until_ready((stacked, scalars))
    return scalars["loss"]

  np.testing.assert_allclose(in_turn(), at_once()[-1], rtol=1e-3)  # the same work; warms both up
  pairs = [(seconds(in_turn), seconds(at_once)) for _ in range(rounds)]
  row = {
    "config": config_name, "arm": arm_name, "seeds": seeds,
    "tokens": arm.batch_sequences * arm.seq_len, "num_params": arm.num_params,
    "compile_cpu_s": {"one": one_compile, "stacked": all_compile},
  }  # fmt: skip
  for column, name in enumerate(("wall", "cpu")):
    ratios = [one[column] / many[column] for one, many in pairs]
    row[name] = {
      "one_by_one_s": statistics.median(one[column] for one, _ in pairs) / STEPS,
      "stacked_s": statistics.median(many[column] for _, many in pairs) / STEPS,
      "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
    }  # fmt: skip
  return row


def timed(compile_):
  """(what it gives, CPU seconds)."""
  start = time.process_time()
  return compile_(), time.process_time() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "stacked_seeds.json")
  args = parser.parse_args()
  import jax

  from moe_parity.startup import start_jax

  start_jax()
  jax.config.update("jax_enable_compilation_cache", False)
  result = {
    "when": datetime.date.today().isoformat(),
    "machine": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {platform.machine()},"
    f" jax {jax.__version__} on {jax.default_backend()}",
    "rounds": args.rounds,
    "rows": [],
  }
  for config_name, arms in ARMS.items():
    for arm_name in arms:
      result["rows"].append(compare(config_name, arm_name, args.seeds, args.rounds))
      args.out.write_text(json.dumps(result, indent=2) + "\n")
      print(json.dumps(result["rows"][-1], indent=2), flush=True)


if __name__ == "__main__":
  main()
