"""The paper's third step, small: what does reading the same text again cost, and who still leads?

  moe-parity plan  --config=configs/data_reuse_small.py
  moe-parity study --config=configs/data_reuse_small.py --workdir=runs/reuse
  moe-parity study --config=configs/data_reuse_small.py:tiny --workdir=runs/tiny_reuse

Strict, unique and loose reuse and a grid of epochs, at three activation rates of one N and C, two
seeds each; then Muennighoff's law is fitted to the runs. 32 runs, an hour on two CPU cores."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False)
  config = base()
  config.name = "data_reuse_small"
  config.budget.num_params = 100_000 if arg.tiny else 200_000
  config.budget.dense_tokens = 6_400 if arg.tiny else 100_000
  config.budget.seq_len = 64 if arg.tiny else 128
  # Shapes as the solver finds them; mixture_small.py has better ones for both sides, found by trial
  # (LOG.md). Compare schemes here, not sides. StepLaw's rate is too fast at this size.
  tuned = dict(learning_rate_multiplier=1.0 if arg.tiny else 0.3)
  config.arms.dense = dense_arm(d_head=16, **tuned)
  config.arms.moe = moe_arm(num_layers=2, d_model=32, d_head=16, multiple_of=4, **tuned)
  config.study.method = "data_reuse"
  config.study.activation_rates = (0.2, 0.3, 0.4) if arg.tiny else (0.12, 0.2, 0.36)
  config.study.seeds = (0,) if arg.tiny else (0, 1)
  config.study.epochs = (2.0, 8.0) if arg.tiny else (4.0, 16.0)
  config.study.compute_multiples = ()
  config.evaluation.max_tokens = 5_000 if arg.tiny else 100_000
  return config
