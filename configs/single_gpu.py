"""The parity question on one GPU of 24 GiB or more: 160 M parameters, a day or two in all.

  moe-parity plan  --config=configs/single_gpu.py
  moe-parity study --config=configs/single_gpu.py --workdir=runs/gpu --config.data.source=text/
  moe-parity plan  --config=configs/single_gpu.py:gib=40 --topology=a100_40gb   # hours on a card
  moe-parity study --config=configs/single_gpu.py:tiny --workdir=runs/tiny

N = 160 M without vocabulary, the dense arm sees 20 tokens a parameter once, every MoE arm reuses
that text (strict). C = 4.3e18 FLOPs an arm by `plan`: 6 hours an arm at 200 TFLOP/s sustained.
Needs 3.2e9 unique tokens, about 12 GB of text: bring it with --config.data.source.

gib=24, 40 or 80 is the card's memory. It sets the micro-batch alone: batches are the same on every
card, multiples of 24. That no layer need be computed twice (remat none), and how many sequences
fit, is what `compile --topology=l4 --search` and the like show (docs/devices.md). The dense arm
needs the most: 17 GiB with 12 sequences, 30 with 24."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm
from moe_parity.errors import UserError

MICRO_BATCH = {24: 12, 40: 24, 80: 24}  # sequences, by GiB of a card
BACKBONE = dict(num_layers=9, d_model=576)  # of every MoE arm, so that only the rate differs


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False, reuse="strict", gib=24)
  if arg.gib not in MICRO_BATCH:
    raise UserError(f"gib={arg.gib} is not one of {', '.join(map(str, MICRO_BATCH))}")
  config = base()
  config.name = "single_gpu"
  config.budget.num_params = 100_000 if arg.tiny else 160_000_000
  config.budget.dense_tokens = 20_000 if arg.tiny else 3_200_000_000
  config.budget.seq_len = 64 if arg.tiny else 2048
  config.budget.batch_multiple = 1 if arg.tiny else 24
  config.budget.reuse = arg.reuse
  config.budget.convention = "executed"
  config.data.tokenizer = "bytes" if arg.tiny else "bpe:32768"
  config.model.dtype = "float32" if arg.tiny else "bfloat16"
  config.model.remat = "none"
  shape = dict(d_head=16) if arg.tiny else dict(d_head=64)
  config.arms.dense = dense_arm(**shape)
  shape |= dict(num_layers=2, d_model=32, multiple_of=4) if arg.tiny else BACKBONE
  for rate in (0.2, 0.4) if arg.tiny else (0.1, 0.2, 0.3, 0.45):
    config.arms[f"moe_{round(100 * rate)}"] = moe_arm(rate, **shape)
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0
  config.train.micro_batch_sequences = 0 if arg.tiny else MICRO_BATCH[arg.gib]
  return config
