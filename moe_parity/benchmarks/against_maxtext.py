"""Times MaxText and moe_parity on the same work in alternating steps; writes `maxtext.json`:

  python -m moe_parity.benchmarks.against_maxtext --maxtext=/path/of/an/environment/bin/python

That environment holds MaxText, installed by the list its wheel carries for use without a cloud
(`dependencies/requirements/generated_requirements/decoupled-requirements.txt`). Four processes are
started (MaxText and ours, dense and MoE); each does one step on request, so that a shared
machine slows all of them alike. Compare the ratios, not the rates."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the checkout
WARM_UP = 3
# The common work: 2,048 tokens a step, float32, AdamW with decay 0.1 and clip 1.
TOKENS = 8 * 256
MAXTEXT = {
  "base_emb_dim": 256, "base_num_decoder_layers": 4, "base_num_query_heads": 4,
  "base_num_kv_heads": 4, "head_dim": 64, "vocab_size": 1024, "max_target_length": 256,
  "per_device_batch_size": 8, "dataset_type": "synthetic", "dtype": "float32",
  "weight_dtype": "float32", "attention": "dot_product", "scan_layers": "true",
  "remat_policy": "minimal", "logits_via_embedding": "false", "opt_type": "adamw", "adam_b1": 0.9,
  "adam_b2": 0.95, "adam_weight_decay": 0.1, "gradient_clipping_threshold": 1.0,
  "enable_checkpointing": "false", "enable_goodput_recording": "false", "hardware": "cpu",
  "skip_jax_distributed_system": "true", "log_period": 100_000,
}  # fmt: skip
MAXTEXT_WORK = {
  "dense": {"decoder_block": "llama2", "base_mlp_dim": 1024},
  # Its fastest way through experts on a CPU: 1.25 times the mean load for each, the rest dropped.
  "moe": {
    "decoder_block": "mixtral", "num_experts": 8, "num_experts_per_tok": 2, "base_mlp_dim": 512,
    "base_moe_mlp_dim": 512, "sparse_matmul": "false", "capacity_factor": 1.25,
    "load_balance_loss_weight": 0.01,
  },
}  # fmt: skip


def take_turns(step) -> None:
  """A worker: a line in, one step, a line [wall seconds, CPU seconds] out."""
  while sys.stdin.readline():
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    seconds = [time.perf_counter() - wall, time.process_time() - cpu]
    print("STEP " + json.dumps(seconds), flush=True)


def ours(work: str) -> None:
  """A worker: `moe-parity bench --only=step`'s step of one kind, in float32."""
  import jax

  from moe_parity.benchmarks import suite
  from moe_parity.startup import start_jax

  start_jax()
  train_step, state, batch = suite.prepared_step(work, "float32")

  def step():
    nonlocal state
    state, scalars = train_step(state, *batch)
    jax.block_until_ready((state, scalars))

  take_turns(step)


def maxtext(work: str, folder: str) -> None:
  """A worker: MaxText's own training loop, paused before each step until one is requested."""
  os.environ |= {"DECOUPLE_GCLOUD": "TRUE", "JAX_PLATFORMS": "cpu"}
  import jax
  import maxtext
  from maxtext.trainers.pre_train import train
  from maxtext.utils import train_utils

  make = train_utils.jit_train_and_eval_step

  class InTurns:
    def __init__(self, train_step):
      self.train_step = train_step

    def __getattr__(self, name):
      return getattr(self.train_step, name)

    def __call__(self, *args):
      if not sys.stdin.readline():
        os._exit(0)
      wall, cpu = time.perf_counter(), time.process_time()
      result = jax.block_until_ready(self.train_step(*args))
      seconds = [time.perf_counter() - wall, time.process_time() - cpu]
      print("STEP " + json.dumps(seconds), flush=True)
      return result

  def make_in_turns(*args, **kwargs):
    train_step, eval_step = make(*args, **kwargs)
    return InTurns(train_step), eval_step

  train_utils.jit_train_and_eval_step = make_in_turns
  settings = MAXTEXT | MAXTEXT_WORK[work]
  settings |= {"steps": 1_000_000, "run_name": work, "base_output_directory": folder}
  settings |= {"jax_cache_dir": f"{folder}/cache"}
  base = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
  train.main(["train", str(base), *(f"{key}={value}" for key, value in settings.items())])


class StepProcess:
  """A process that does one step at a time."""

  def __init__(self, python: str, *arguments: str, log: pathlib.Path):
    command = [python, str(pathlib.Path(__file__).resolve()), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    self.log = log
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True,
      env=environment,
    )  # fmt: skip

  def step(self) -> list[float]:
    """[wall, CPU] seconds of one step."""
    self.process.stdin.write("\n")
    self.process.stdin.flush()
    for line in self.process.stdout:
      if line.startswith("STEP "):
        return json.loads(line.removeprefix("STEP "))
    raise RuntimeError(f"a worker ended:\n{self.log.read_text()[-2000:]}")


def compare(python: str, rounds: int) -> dict:
  """What `maxtext.json` holds."""
  with tempfile.TemporaryDirectory() as folder:
    here = pathlib.Path(folder)
    workers = {}
    for work in MAXTEXT_WORK:
      for side, interpreter in (("maxtext", python), ("ours", sys.executable)):
        arguments = ("--worker", side, work, folder)
        worker = StepProcess(interpreter, *arguments, log=here / f"{side}_{work}.log")
        workers[work, side] = worker
        for _ in range(WARM_UP):
          worker.step()
    seconds = {key: [] for key in workers}
    for _ in range(rounds):
      for key, worker in workers.items():
        seconds[key].append(worker.step())
    for worker in workers.values():
      worker.process.kill()
      worker.process.wait()
  script = "import json; from importlib.metadata import version as v;" \
    "print(json.dumps({n: v(n) for n in ('maxtext', 'jax')}))"  # fmt: skip
  versions = json.loads(subprocess.check_output([python, "-c", script], text=True))
  result = {
    "what": f"MaxText {versions['maxtext']}, jax {versions['jax']}, float32",
    "when": datetime.date.today().isoformat(),
    "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    "rounds": rounds,
    "note": "capacity 1.25 for MaxText's experts, which drops; ours is dropless",
  }
  for work in MAXTEXT_WORK:
    theirs, mine = seconds[work, "maxtext"], seconds[work, "ours"]
    columns = {}
    for column, name in enumerate(("wall", "cpu")):
      pairs = [(t[column], m[column]) for t, m in zip(theirs, mine, strict=True)]
      columns[name] = {
        "maxtext_s": statistics.median(t for t, _ in pairs),
        "ours_s": statistics.median(m for _, m in pairs),
        "maxtext_min_s": min(t for t, _ in pairs),
        "ours_min_s": min(m for _, m in pairs),
        "ratio": statistics.median(t / m for t, m in pairs),
        "ratio_min": min(t / m for t, m in pairs),
        "ratio_max": max(t / m for t, m in pairs),
      }
    result[work] = columns
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--maxtext", metavar="PYTHON", help="interpreter that can import MaxText")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--worker", nargs=3, metavar=("SIDE", "WORK", "FOLDER"))
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "maxtext.json")
  args = parser.parse_args()
  if args.worker:
    side, work, folder = args.worker
    return maxtext(work, folder) if side == "maxtext" else ours(work)
  if not args.maxtext:
    parser.error("--maxtext=PYTHON is missing: the interpreter of an environment with MaxText")
  result = compare(args.maxtext, args.rounds)
  args.out.write_text(json.dumps(result, indent=2) + "\n")
  print(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
