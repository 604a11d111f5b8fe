"""The paper's first step, small: which backbone, at one activation rate, before rates are swept?

  moe-parity plan  --config=configs/architecture_small.py
  moe-parity study --config=configs/architecture_small.py --workdir=runs/search
  moe-parity study --config=configs/architecture_small.py:gpu --workdir=runs/search_gpu
  moe-parity study --config=configs/architecture_small.py:tiny --workdir=runs/tiny_search

Greedy, in the paper's order: layout with and without shared expert, gate normalization, top-K at
constant K x D_e, zeta and mu, and last the scale of the routed sum; the dense baseline is searched
over d / L and d_ffn / d by the same rule. Three seeds each, N = 0.2M: an hour or two on two CPU
cores; with `gpu` N = 8M. Later stages follow from the results of earlier ones, so `plan` knows the
first ones only, and at most how many runs follow."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm


def get_config(arg=None):
  arg = parse_arg(arg, activation_rate=0.25, gpu=False, tiny=False)
  config = base()
  config.name = "architecture_small"
  config.study.method = "architecture"
  config.study.seeds = (0,) if arg.tiny else (0, 1, 2)
  study, budget = config.study, config.budget
  budget.convention = "executed"
  if arg.tiny:
    budget.num_params, budget.dense_tokens, budget.seq_len = 100_000, 20_000, 64
    shape = dict(d_head=16, multiple_of=4)
    dense, moe = {}, dict(num_layers=2, d_model=32)
    study.layouts, study.granularities = ("1dense+se", "1dense"), (2.0,)
    study.aspect_ratios, study.dense_aspect_ratios = (10.7,), (24.0,)
    config.evaluation.max_tokens = 5_000
  elif arg.gpu:
    budget.num_params, budget.dense_tokens, budget.seq_len = 8_000_000, 160_000_000, 512
    shape, dense, moe = dict(d_head=32), {}, dict(num_layers=6, d_model=160)
    study.aspect_ratios, study.total_ffn_ratios = (16.0, 27.0, 45.0), (14.0, 24.0)
    study.dense_aspect_ratios, study.dense_ffn_ratios = (18.0, 27.0, 54.0), (2.7, 3.5, 5.0)
  else:
    budget.num_params, budget.dense_tokens, budget.seq_len = 200_000, 240_000, 128
    budget.params_tolerance = 0.01  # few shapes of so few parameters come closer
    # StepLaw starts at 6e7 parameters and is too fast here; the factor of mixture_small.py.
    shape = dict(d_head=16, multiple_of=2, learning_rate_multiplier=0.3)
    dense = dict(num_layers=4, d_model=64)
    moe = dict(num_layers=4, d_model=32, experts_per_token=2)
    study.aspect_ratios, study.total_ffn_ratios = (5.3, 8.0, 16.0), (12.0, 28.0)
    study.dense_aspect_ratios, study.dense_ffn_ratios = (8.0, 24.0), (2.0, 3.5, 5.0)
    config.evaluation.max_tokens = 100_000
  config.arms.dense = dense_arm(**dense, **shape)
  config.arms.moe = moe_arm(arg.activation_rate, **moe, **shape)
  return config
