"""The paper's third step, small: what does reading the same text again cost, and who still leads?

  moe-parity plan  --config=configs/data_reuse_small.py
  moe-parity study --config=configs/data_reuse_small.py --workdir=runs/reuse
  moe-parity study --config=configs/data_reuse_small.py:tiny --workdir=runs/tiny_reuse

Strict, unique and loose reuse and a grid of epochs, at three activation rates of one N and C, two
seeds each; then Muennighoff's law is fitted to the runs."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False)
  config = base()
  config.name = "data_reuse_small"
  config.budget.num_params = 100_000 if arg.tiny else 802_816
  config.budget.dense_tokens = 6_400 if arg.tiny else 150_000
  config.budget.seq_len = 64 if arg.tiny else 128
  config.arms.dense = dense_arm(d_head=16 if arg.tiny else 32)
  backbone = dict(num_layers=2, d_model=32, d_head=16, multiple_of=4)
  config.arms.moe = moe_arm(**(backbone if arg.tiny else dict(num_layers=3, d_model=64, d_head=32)))
  config.study.method = "data_reuse"
  config.study.activation_rates = (0.2, 0.3, 0.4) if arg.tiny else (0.12, 0.2, 0.3)
  config.study.seeds = (0,) if arg.tiny else (0, 1)
  config.study.epochs = (2.0, 8.0) if arg.tiny else (4.0, 8.0, 16.0)
  config.study.compute_multiples = ()
  config.evaluation.max_tokens = 5_000 if arg.tiny else 60_000
  return config
