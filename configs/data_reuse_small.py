"""The paper's third step, small: what does reading the same text again cost, and who still leads?

  moe-parity plan  --config=configs/data_reuse_small.py
  moe-parity study --config=configs/data_reuse_small.py --workdir=runs/reuse
  moe-parity study --config=configs/data_reuse_small.py:tiny --workdir=runs/tiny_reuse

Strict, unique and loose reuse and a grid of epochs, at three activation rates of one N and C, two
seeds each; then Muennighoff's law is fitted to the runs. 44 runs, about an hour on two shared CPU
cores; --shard=1/2 and --shard=2/2 make two workers.

Repetition has to bite, so the text is short: dense reads 1.5 bytes a parameter once; MoE arms read
3.4 to 5.7, of which 16 epochs leave 0.21 to 0.36 different ones, and 32 half of that. In a trial
(at equal C by convention paper) r_a = 20 % scored 3.76 bits per character without repetition, 3.93
at 16 epochs, and at 64 had memorized its text (0.5 nats a byte there, 8.2 bits elsewhere): no
law of reuse says that, so the grid ends at 32."""

from configs.mixture_small import set_arms
from moe_parity.config import parse_arg
from moe_parity.defaults import base


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False)
  config = base()
  config.name = "data_reuse_small"
  config.budget.num_params = 100_000 if arg.tiny else 200_000
  config.budget.dense_tokens = 6_400 if arg.tiny else 300_000
  config.budget.seq_len = 64 if arg.tiny else 128
  config.budget.convention = "executed"
  set_arms(config.arms, arg.tiny)
  config.study.method = "data_reuse"
  config.study.activation_rates = (0.2, 0.3, 0.4) if arg.tiny else (0.15, 0.2, 0.4)
  config.study.seeds = (0,) if arg.tiny else (0, 1)
  config.study.epochs = (2.0, 8.0) if arg.tiny else (4.0, 8.0, 16.0, 32.0)
  config.study.compute_multiples = ()
  config.evaluation.max_tokens = 5_000 if arg.tiny else 100_000
  return config
