"""The paper's 7B budget: 6.5e9 parameters, 68e9 dense tokens, C = 2.86e21 FLOPs an arm.
Source: arXiv 2506.12119, Table 14 row 5 (dense) and Table 11 (MoE shapes).

  moe-parity plan  --config=configs/paper_7b.py                       # all arms, in a second
  moe-parity plan  --config=configs/paper_7b.py:activation_rate=0.2   # dense and one MoE arm
  moe-parity plan  --config=configs/paper_7b.py:arms=dense,reuse=unique
  moe-parity plan  --config=configs/paper_7b.py:printed               # the paper's lr and batch
  moe-parity study --config=configs/paper_7b.py:activation_rate=0.2,tiny --workdir=runs/tiny_7b

Cost: C over half of an H100's 989 TFLOP/s of bf16 is 1,606 H100 hours an arm.
Expect: the paper reports bits per character on a private set; see its Tables 11 and 14 in
moe_parity/paper. Bring text with --config.data.source: the built-in corpus is far too small."""

from configs.paper import budget


def get_config(arg=None):
  return budget(arg, "paper_7b", 6_495_000_000, dense=5, moe_table="table11")
