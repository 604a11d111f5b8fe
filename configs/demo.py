"""The parity question at toy scale, on a laptop CPU.

  moe-parity demo                                          # this config, with a report at the end
  moe-parity plan --config=configs/demo.py                 # what it will do, in a second
  moe-parity study --config=configs/demo.py --workdir=runs/demo
  moe-parity demo --size=gpu                               # six times larger, in bfloat16 (:gpu)
  moe-parity plan --config=configs/demo.py:tiny            # a few seconds of work, for tests

One dense arm and four MoE arms of equal parameters, executed training FLOPs and unique text (strict
reuse: the text the dense arm reads once is all that any arm sees), and two dense controls: one of a
quarter of the parameters, one of the size that the sparsest MoE arm activates. Two seeds each,
which draw weights, text and its order. Byte tokenizer, built-in corpus."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm

RATES = (0.12, 0.2, 0.3, 0.5)
SEEDS = (0, 1)
LEARNING_RATES = (0.0025, 0.005, 0.01)


# (N, tokens of the dense arm, positions, dense shape, shape of every MoE arm)
CPU = (
  802_816, 100_000, 128,
  dict(num_layers=4, d_model=128, d_head=32, d_ffn=352), dict(num_layers=3, d_model=64, d_head=32),
)  # fmt: skip
GPU = (  # what 12.5 MB of built-in text are enough for
  4_816_896, 600_000, 256,
  dict(num_layers=6, d_model=256, d_head=64, d_ffn=704), dict(num_layers=5, d_model=128, d_head=64),
)  # fmt: skip
TINY = (
  100_000, 20_000, 64,
  dict(d_head=16), dict(num_layers=2, d_model=32, d_head=16, multiple_of=4),
)  # fmt: skip


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False, gpu=False)
  num_params, tokens, seq_len, dense, backbone = TINY if arg.tiny else GPU if arg.gpu else CPU
  config = base()
  config.name = "demo_gpu" if arg.gpu and not arg.tiny else "demo"
  config.budget.num_params = num_params
  config.budget.dense_tokens = tokens
  config.budget.seq_len = seq_len
  config.budget.reuse = "strict"
  config.budget.convention = "executed"  # equal compute counts router, head and attention as it is
  if arg.gpu and not arg.tiny:
    config.model.dtype = "bfloat16"
  config.arms.dense = dense_arm(**dense)
  rates = (0.2, 0.4) if arg.tiny else RATES
  for rate in rates:
    config.arms[f"moe_{round(100 * rate)}"] = moe_arm(rate, **backbone)
  if not arg.tiny:
    # Controls: is a lead one of the experts, or of a smaller model that reads more text?
    config.arms.dense_active = dense_arm(active_of="moe_12")
    config.arms.dense_small = dense_arm(params_multiple=0.25, d_head=dense["d_head"])
    config.data.draw_per_seed = True
    # Each arm and control at its own best of the same rates, tried on a seed that is not compared.
    config.study.learning_rate_grid = LEARNING_RATES
    for name in config.arms:
      config.arms[name].seeds = SEEDS
  config.evaluation.max_tokens = 5_000 if arg.tiny else 30_000
  return config
