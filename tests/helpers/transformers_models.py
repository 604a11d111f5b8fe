"""Makes small models in transformers, with their logits. Runs by itself, in a Python with torch:

python transformers_models.py FOLDER
"""

import pathlib
import sys

import numpy as np

SMALL = {
  "vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
  "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
  "initializer_range": 0.3,
}  # fmt: skip
EXPERTS = {
  "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
  "shared_expert_intermediate_size": 24, "qkv_bias": False,
}  # fmt: skip
SHARED = {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 16}
OF_LLAMA_3 = {"rope_type": "default", "rope_theta": 5e5}


def make(folder: pathlib.Path) -> None:
  """A folder a class, as save_pretrained writes one, and reference.npz in it. What is not given is
  the class's own: Mixtral's and Ernie's rotary bases, epsilons and tied words."""
  import torch
  import transformers as hf

  torch.manual_seed(0)
  torch.set_num_threads(1)
  llama = hf.LlamaConfig(
    **SMALL, rms_norm_eps=1e-5, rope_parameters=OF_LLAMA_3, tie_word_embeddings=True
  )
  mixtral = hf.MixtralConfig(**SMALL, num_local_experts=6, num_experts_per_tok=2)
  models = {
    "llama": hf.LlamaForCausalLM(llama),
    "mixtral": hf.MixtralForCausalLM(mixtral),
    "ernie4_5_moe": hf.Ernie4_5_MoeForCausalLM(hf.Ernie4_5_MoeConfig(**SMALL, **SHARED)),
    "qwen2_moe": hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**SMALL, **EXPERTS)),
  }
  tokens = torch.randint(0, SMALL["vocab_size"], (3, 40))
  for name, model in models.items():
    model.eval()
    with torch.no_grad():
      for path, weight in model.named_parameters():
        if "e_score" in path:
          weight.copy_(0.05 * torch.randn_like(weight))
        elif "norm" in path:
          weight.copy_(1 + 0.2 * torch.randn_like(weight))
        elif "shared_expert_gate" in path:
          weight.zero_()
      logits = model(tokens).logits.numpy()
    model.save_pretrained(folder / name)
    np.savez(folder / name / "reference.npz", tokens_BS=tokens.numpy(), logits_BSV=logits)


if __name__ == "__main__":
  make(pathlib.Path(sys.argv[1]))
