"""What is the sum of the routed experts to be multiplied by, at one activation rate of the demo?

  moe-parity plan  --config=configs/routed_scale.py
  moe-parity study --config=configs/routed_scale.py --workdir=runs/scale_12
  moe-parity study --config=configs/routed_scale.py:activation_rate=0.3 --workdir=runs/scale_30

The last stage of the architecture search alone: the demo's MoE arm with raw gates as they are,
times E/K, and times a number that each layer learns, next to the demo's dense arm, at the demo's
budget. Raw gates of many experts add up to little (1/E each where the router is even); E/K brings
their sum back to about 1. One seed, and the learning rate that the demo's tries found best for
dense and every MoE arm (results/demo/learning_rates.md); with `tuned` each option finds its own.
Four runs, five minutes on two CPU cores: one seed, no verdict."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm

LEARNING_RATES, BEST_RATE = (0.00125, 0.0025, 0.005), 0.0025


def get_config(arg=None):
  arg = parse_arg(arg, activation_rate=0.12, tuned=False, tiny=False)
  config = base()
  config.name = "routed_scale"
  budget, study = config.budget, config.study
  budget.convention, budget.reuse = "executed", "strict"
  budget.num_params, budget.dense_tokens, budget.seq_len = 802_816, 100_000, 128
  config.arms.dense = dense_arm(num_layers=4, d_model=128, d_head=32, d_ffn=352)
  config.arms.moe = moe_arm(arg.activation_rate, num_layers=3, d_model=64, d_head=32)
  if arg.tiny:
    budget.num_params, budget.dense_tokens, budget.seq_len = 100_000, 20_000, 64
    config.arms.dense = dense_arm(d_head=16)
    config.arms.moe = moe_arm(
      arg.activation_rate, num_layers=2, d_model=32, d_head=16, multiple_of=4
    )
  study.method = "architecture"
  study.layouts, study.gates, study.granularities = (), False, ()
  study.seeds = (0,)
  if arg.tuned:
    study.learning_rate_grid = LEARNING_RATES
  else:
    config.arms.dense.peak_learning_rate = config.arms.moe.peak_learning_rate = BEST_RATE
  config.data.draw_per_seed = True
  config.evaluation.max_tokens = 5_000 if arg.tiny else 30_000
  return config
