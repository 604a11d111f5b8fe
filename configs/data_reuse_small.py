"""The paper's third step, small: what does reading the same text again cost, and who still leads?

  moe-parity plan  --config=configs/data_reuse_small.py
  moe-parity study --config=configs/data_reuse_small.py --workdir=runs/reuse
  moe-parity study --config=configs/data_reuse_small.py:tiny --workdir=runs/tiny_reuse

Strict, unique and loose reuse and a grid of epochs, at three activation rates of one N and C, two
seeds each; then Muennighoff's law is fitted to the runs. 44 runs, about 40 minutes on one
CPU core; --shard=1/2 and 2/2 make it two.

Repetition has to bite, so the text is short: dense reads 1.5 bytes a parameter once; MoE arms read
3.4 to 5.7, of which 16 epochs leave 0.21 to 0.36 different ones, and 32 half of that. In a trial
(at equal C by convention paper) r_a = 20 % scored 3.76 bits per character without repetition, 3.93
at 16 epochs, and at 64 had memorized its text (0.5 nats a byte there, 8.2 bits elsewhere): no
law of reuse says that, so the grid ends at 32."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False)
  config = base()
  config.name = "data_reuse_small"
  config.budget.num_params = 100_000 if arg.tiny else 200_000
  config.budget.dense_tokens = 6_400 if arg.tiny else 300_000
  config.budget.seq_len = 64 if arg.tiny else 128
  config.budget.convention = "executed"
  # Shapes and rate of mixture_small.py, found by trial for both sides (docs/log/0018).
  common = dict(d_head=16, learning_rate_multiplier=0.3)
  if arg.tiny:
    config.arms.dense = dense_arm(**common)
    config.arms.moe = moe_arm(num_layers=2, d_model=32, multiple_of=4, **common)
  else:
    config.arms.dense = dense_arm(num_layers=3, d_model=80, multiple_of=1, **common)
    config.arms.moe = moe_arm(
      num_layers=2, d_model=48, d_ffn=44, d_expert=8, multiple_of=2, **common
    )
  config.study.method = "data_reuse"
  config.study.activation_rates = (0.2, 0.3, 0.4) if arg.tiny else (0.15, 0.2, 0.4)
  config.study.seeds = (0,) if arg.tiny else (0, 1)
  config.study.epochs = (2.0, 8.0) if arg.tiny else (4.0, 8.0, 16.0, 32.0)
  config.study.compute_multiples = ()
  config.evaluation.max_tokens = 5_000 if arg.tiny else 100_000
  return config
