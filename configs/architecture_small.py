"""The paper's first step, small: which backbone, at one activation rate, before rates are swept?

  moe-parity plan  --config=configs/architecture_small.py
  moe-parity study --config=configs/architecture_small.py --workdir=runs/search
  moe-parity study --config=configs/architecture_small.py:tiny --workdir=runs/tiny_search

Greedy, in the paper's order: layout with and without shared expert, gate normalisation, top-K at
constant K x D_e, then zeta and mu; the dense baseline is searched over d / L and d_ffn / d by the
same rule. Three seeds each. Later stages follow from the results of earlier ones."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm


def get_config(arg=None):
  arg = parse_arg(arg, activation_rate=0.25, tiny=False)
  config = base()
  config.name = "architecture_small"
  config.budget.num_params = 100_000 if arg.tiny else 8_000_000
  config.budget.dense_tokens = 20_000 if arg.tiny else 160_000_000
  config.budget.seq_len = 64 if arg.tiny else 512
  shape = dict(d_head=16, multiple_of=4) if arg.tiny else dict(d_head=32)
  backbone = dict(num_layers=2, d_model=32) if arg.tiny else dict(num_layers=6, d_model=160)
  config.arms.dense = dense_arm(**shape)
  config.arms.moe = moe_arm(arg.activation_rate, **backbone, **shape)
  config.study.method = "architecture"
  config.study.seeds = (0,) if arg.tiny else (0, 1, 2)
  if arg.tiny:
    config.study.layouts, config.study.granularities = ("1dense+se", "1dense"), (2.0,)
  else:
    config.study.aspect_ratios, config.study.total_ffn_ratios = (16.0, 27.0, 45.0), (14.0, 24.0)
    config.study.dense_aspect_ratios = (18.0, 27.0, 54.0)
    config.study.dense_ffn_ratios = (2.7, 3.5, 5.0)
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0
  return config
