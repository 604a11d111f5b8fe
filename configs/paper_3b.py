"""The paper's 3B budget: 3.29e9 parameters, 63e9 dense tokens, C = 1.40e21 FLOPs an arm.
Source: arXiv 2506.12119, Table 14 row 3 (dense) and Table 16 (MoE shapes).

  moe-parity plan  --config=configs/paper_3b.py                       # all arms, in a second
  moe-parity plan  --config=configs/paper_3b.py:activation_rate=0.2   # dense and one MoE arm
  moe-parity plan  --config=configs/paper_3b.py:arms=dense,reuse=unique
  moe-parity plan  --config=configs/paper_3b.py:printed               # the paper's lr and batch
  moe-parity study --config=configs/paper_3b.py:activation_rate=0.2,tiny --workdir=runs/tiny_3b

Cost: C over half of an H100's 989 TFLOP/s of bf16 is 787 H100 hours an arm.
Expect: the paper reports bits per character on a private set; see its Tables 16 and 14 in
moe_parity/paper. Bring text with --config.data.source: the built-in corpus is far too small."""

from configs.paper import budget


def get_config(arg=None):
  return budget(arg, "paper_3b", 3_290_000_000, dense=3, moe_table="table16")
