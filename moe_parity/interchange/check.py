"""Does transformers say what we say? Logits and greedy tokens of an export against the run's own.

transformers runs in a process that imports nothing of this project, in this Python or the one that
MOE_PARITY_HF_PYTHON names (JAX and torch need not be installed together).
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from moe_parity.errors import UserError
from moe_parity.inference.generator import Generator
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.interchange.export import Exported
from moe_parity.model.transformer import abstract_model

PYTHON = "MOE_PARITY_HF_PYTHON"
TOLERANCE = 1e-4  # largest difference of two logits
FIND = """
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")))
"""  # without importing them, which takes seconds
SCRIPT = pathlib.Path(__file__).with_name("transformers_check.py")


def check_exports(exports: Sequence[Exported], *, seed: int = 0) -> list[dict]:
  """Compares each on drawn tokens; `passed`: all agree (see `transformers_check.compare`).

  transformers is started once, which takes longer than a comparison.

  Raises:
    UserError: there is no torch or transformers, or transformers cannot load a folder.
  """
  python = hf_python()
  with tempfile.TemporaryDirectory() as scratch:
    pairs = []
    for number, exported in enumerate(exports):
      path = pathlib.Path(scratch) / f"reference_{number}.npz"
      np.savez(path, **reference_of(exported, seed))
      pairs.append((exported.folder, path))
    results = run_transformers(python, pairs)
  for result in results:
    result["tolerance"] = TOLERANCE
    result["passed"] = (
      result["largest_difference"] <= TOLERANCE
      and result["equal_argmax"] == 1.0
      and result["equal_greedy"]
      and not result["missing"]
      and not result["unexpected"]
    )
  return results


def hf_python() -> str:
  """
  Raises:
    UserError: a Python without torch and transformers.
  """
  python = os.environ.get(PYTHON) or sys.executable
  try:
    missing = subprocess.run([python, "-c", FIND], capture_output=True).returncode != 0
  except OSError:
    missing = True
  if missing:
    raise UserError(
      f"{python} has no torch and transformers; pip install torch 'moe_parity[hf]', or set"
      f" {PYTHON} to a Python that has them"
    )
  return python


def run_transformers(python: str, pairs: Sequence[tuple[pathlib.Path, pathlib.Path]]) -> list[dict]:
  """What `transformers_check.py` prints of each export and its reference."""
  environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
  environment.pop("PYTHONPATH", None)
  paths = [str(path.resolve()) for pair in pairs for path in pair]
  with tempfile.TemporaryDirectory() as modules:  # where remote code is copied to
    environment["HF_MODULES_CACHE"] = modules
    command = [python, str(SCRIPT), *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=modules)
  results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
  if len(results) < len(pairs):  # it stopped at the one after the last that it printed
    folder = pairs[len(results)][0]
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise UserError(f"{folder}: transformers cannot load it ({last}); its versions may be too old")
  return results


def reference_of(exported: Exported, seed: int = 0) -> dict[str, np.ndarray]:
  """Our logits on drawn sequences, computed in float32, and the greedy tokens after a prompt.

  No token is one that begins a document: an export has one document a sequence.
  """
  run, tokenizer = exported.model, exported.tokenizer
  positions = min(run.plan["seq_len"], 24)
  ids = np.setdiff1d(
    np.arange(run.architecture.vocab_size), [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
  )
  drawn = np.random.default_rng(seed).choice(ids, (3, positions)).astype(np.int32)
  drawn[:, 0] = tokenizer.bos_id
  options = float32(run.options)
  graph = abstract_model(run.architecture, options)[0]

  @jax.jit
  def logits(params, buffers, tokens_BS):
    model = nnx.merge(graph, params, buffers)
    return model.logits(model.final_hidden(tokens_BS)[0])

  logits_TV = np.asarray(logits(run.params, run.buffers, drawn))
  model = InferenceModel(run.architecture, options, run.params, run.buffers)
  generator = Generator(model, num_positions=run.plan["seq_len"])
  prompt = drawn[0, : max(1, positions // 3)]
  said = list(generator.generate([prompt], max(1, min(12, run.plan["seq_len"] - len(prompt)))))
  return {
    "tokens_BS": drawn,
    "logits_BSV": logits_TV.reshape(*drawn.shape, -1),
    "prompt_S": prompt,
    "greedy_N": np.array(said, np.int32)[:, 0],
  }


def float32(options):
  """The options computed in float32, with nothing dropped."""
  return dataclasses.replace(options, dtype="float32", capacity_factor=0.0, remat="none")
