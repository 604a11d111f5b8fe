"""The parity question at toy scale, on a laptop CPU.

  moe-parity demo                                          # this config, with a report at the end
  moe-parity plan --config=configs/demo.py                 # what it will do, in a second
  moe-parity study --config=configs/demo.py --workdir=runs/demo
  moe-parity plan --config=configs/demo.py:tiny            # a few seconds of work, for tests

One dense arm and five MoE arms of equal parameters, training FLOPs and unique text (strict reuse:
the text the dense arm reads once is all that any arm sees), byte tokenizer, built-in corpus."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm

RATES = (0.12, 0.2, 0.3, 0.45, 0.6)


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False)
  config = base()
  config.name = "demo"
  config.budget.num_params = 100_000 if arg.tiny else 802_816
  config.budget.dense_tokens = 20_000 if arg.tiny else 150_000
  config.budget.seq_len = 64 if arg.tiny else 128
  config.budget.reuse = "strict"
  config.budget.convention = "executed"  # equal compute counts router, head and attention as it is
  if arg.tiny:
    config.arms.dense = dense_arm(d_head=16)
    backbone, rates = dict(num_layers=2, d_model=32, d_head=16, multiple_of=4), (0.2, 0.4)
  else:
    config.arms.dense = dense_arm(num_layers=4, d_model=128, d_head=32, d_ffn=352)
    backbone, rates = dict(num_layers=3, d_model=64, d_head=32), RATES
  for rate in rates:
    config.arms[f"moe_{round(100 * rate)}"] = moe_arm(rate, **backbone)
  config.evaluation.max_tokens = 5_000 if arg.tiny else 60_000
  return config
