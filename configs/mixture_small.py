"""The activation rate swept on a mixture of your own text, small enough for a few CPU cores.

  moe-parity plan  --config=configs/mixture_small.py
  moe-parity study --config=configs/mixture_small.py --workdir=runs/mix --config.data.source=STORE
  moe-parity study --config=configs/mixture_small.py:check,tiny --workdir=runs/tiny

STORE is a token store (`moe-parity prepare`), or set --config.data.source to text. Bytes are
tokens: at this size a vocabulary would cost more than the model. Seven activation rates at one N,
C and unique data (strict reuse), dense at C with three seeds and at 2C with one, two more seeds of
the best rate and its neighbors, then four dense controls with three seeds: 29 runs. With `check`
both sides are also tried at half and twice their learning rate: 4 more."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm

RATES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.55, 0.75)


def set_arms(arms, tiny):
  """The shapes found for 200,000 parameters on bytes, dense and MoE, and their learning rate."""
  # StepLaw starts at 6e7 parameters. Here its rate keeps dense at byte frequencies for long; 0.3
  # times it did better than 0.1 for dense and r_a = 0.2 (docs/log/0006): one factor for all arms.
  common = dict(d_head=16, learning_rate_multiplier=0.3)
  if tiny:
    arms.dense = dense_arm(**common)
    arms.moe = moe_arm(num_layers=2, d_model=32, multiple_of=4, **common)
  else:  # of seven dense and four MoE shapes, at a third of the compute (docs/log/0018)
    arms.dense = dense_arm(num_layers=3, d_model=80, multiple_of=1, **common)
    arms.moe = moe_arm(num_layers=2, d_model=48, d_ffn=44, d_expert=8, multiple_of=2, **common)


def get_config(arg=None):
  arg = parse_arg(arg, check=False, tiny=False)
  config = base()
  config.name = "mixture_small"
  config.budget.num_params = 100_000 if arg.tiny else 200_000
  config.budget.dense_tokens = 20_000 if arg.tiny else 1_200_000
  config.budget.seq_len = 64 if arg.tiny else 128
  config.budget.reuse = "strict"
  config.budget.convention = "executed"
  set_arms(config.arms, arg.tiny)
  config.study.method = "activation_rate"
  config.study.activation_rates = (0.2, 0.3, 0.4) if arg.tiny else RATES
  config.study.more_seeds = (1,) if arg.tiny else (1, 2)
  config.study.learning_rates = (0.5, 2.0) if arg.check else ()
  config.evaluation.max_tokens = 5_000 if arg.tiny else 100_000
  return config
