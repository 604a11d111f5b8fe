"""Loads exports in transformers and compares each with its reference numbers. Runs by itself, in
any Python with torch and transformers, and imports nothing of this project:

  python transformers_check.py EXPORT REFERENCE.npz [EXPORT REFERENCE.npz ...]
"""

import json
import sys

import numpy as np


def compare(folder: str, reference: dict) -> dict:
  """Largest difference of the logits, share of equal arg-maxima, and the greedy tokens.

  Args:
    reference: tokens_BS, logits_BSV of them; prompt_S and greedy_N, which follow it.
  """
  import torch
  import transformers

  torch.set_num_threads(1)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
  )
  model.eval()
  model.generation_config.eos_token_id = None  # no token is kept from being said, none ends a text
  tokens = torch.tensor(reference["tokens_BS"], dtype=torch.long)
  prompt = torch.tensor(reference["prompt_S"], dtype=torch.long)[None]
  with torch.no_grad():
    logits = model(tokens).logits.float().numpy()
    new = len(reference["greedy_N"])
    said = model.generate(
      prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new,
      pad_token_id=0,
    )[0, prompt.shape[1] :]  # fmt: skip
  ours = reference["logits_BSV"]
  return {
    "class": type(model).__name__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "missing": sorted(map(str, info["missing_keys"])),
    "unexpected": sorted(map(str, info["unexpected_keys"])),
    "largest_difference": float(np.abs(logits - ours).max()),
    "equal_argmax": float((logits.argmax(-1) == ours.argmax(-1)).mean()),
    "greedy": said.tolist(),
    "equal_greedy": said.tolist() == reference["greedy_N"].tolist(),
  }


if __name__ == "__main__":
  for folder, path in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    with np.load(path) as reference:
      print(json.dumps(compare(folder, dict(reference))), flush=True)
