"""The paper's 2B budget: 2.15e9 parameters, 65e9 dense tokens, C = 9.4e20 FLOPs an arm.
Source: arXiv 2506.12119, Table 14 row 1 (dense) and Table 10 (MoE shapes).

  moe-parity plan  --config=configs/paper_2b.py                       # all arms, in a second
  moe-parity plan  --config=configs/paper_2b.py:activation_rate=0.2   # dense and one MoE arm
  moe-parity plan  --config=configs/paper_2b.py:arms=dense,reuse=unique
  moe-parity plan  --config=configs/paper_2b.py:printed               # the paper's lr and batch
  moe-parity plan  --config=configs/paper_2b.py:gib=80                # for one GPU of 80 GiB
  moe-parity study --config=configs/paper_2b.py:activation_rate=0.2,tiny --workdir=runs/tiny_2b

gib=80 sets what one such card has room for (docs/devices.md): remat none and 4 sequences at a time,
67 GiB for the dense arm. 24 and 40 GiB are too small for optimizer state and activations of a step.

Cost: C over half of an H100's 989 TFLOP/s of bf16 is 525 H100 hours an arm.
Expect: the paper reports bits per character on a private set; see its Tables 10 and 14 in
moe_parity/paper. Bring text with --config.data.source: the built-in corpus is far too small."""

from configs.paper import budget

CARDS = {80: ("none", 4)}


def get_config(arg=None):
  return budget(arg, "paper_2b", 2_150_000_000, dense=1, moe_table="table10", cards=CARDS)
