"""The study at real depth: N = 100 to 800 thousand, text of 2 to 80 bytes a parameter, tuned.

  moe-parity plan  --config=configs/depth.py
  moe-parity plan  --config=configs/depth.py:tokens_per_param=20,few=True
  moe-parity plan  --config=configs/depth.py:size=100,tokens_per_param=80,few=True
  moe-parity plan  --config=configs/depth.py:size=400,tokens_per_param=2,few=True
  moe-parity plan  --config=configs/depth.py:size=800,few=True
  moe-parity study --config=configs/depth.py --workdir=runs/depth --config.data.source=STORE
  moe-parity study --config=configs/depth.py:tiny --workdir=runs/tiny_depth

Size and tokens_per_param name a cell, which is a study in a folder of its own. STORE: what the two
commands in the docstring of configs/texts/depth.py make (any token store of bytes will do). Bytes
are tokens. Every arm, reference and control tries the same learning rates with all its tokens on a
seed of its own, then trains with three seeds, which draw weights, text and order, at its own best.
Seven activation rates, dense at C and at 2C, and, once it is known which MoE arm is best, dense of
its active size and smaller dense models; with `few` three rates and fewer controls. FLOPs are
executed ones, text is reused strictly. On one quiet CPU core the first two take 1.3 and 2.5 hours,
80 bytes at N = 100 thousand 4, and N = 800 thousand would take about 7."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm
from moe_parity.errors import UserError

RATES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.55, 0.75)
FEW_RATES = (0.15, 0.25, 0.4)
LEARNING_RATES = (0.004, 0.008, 0.016)
# Thousands of parameters: shape of dense as layers, d_model; of MoE as layers, d_model, d_expert,
# d_ffn of the dense layer (0: the planner's).
SHAPES = {
  # With 20 bytes the best MoE shape of four by 0.35 BPC, with one layer; dense's second of four, by
  # 0.003 BPC, and the second of seven with 2 bytes (depth_shapes.py).
  100: ((2, 80), (1, 48, 4, 0)),
  # Of seven dense and four MoE shapes, at a third of the compute of 5 bytes (docs/log/0018).
  200: ((3, 80), (2, 48, 8, 44)),
  800: ((5, 128), (3, 64, 16, 0)),  # the ratios of 200
}
# With 2 bytes a parameter: the best of the tries of depth_shapes.py, which have that much text; the
# MoE one of 100 is that of SHAPES, which was not among them.
SHAPES_OF_2_BYTES = {
  100: ((1, 96), (1, 48, 4, 0)),
  200: ((2, 112), (2, 48, 8, 44)),
  400: ((2, 144), (2, 64, 16, 56)),
}


def get_config(arg=None):
  arg = parse_arg(arg, size=200, tokens_per_param=5, few=False, tiny=False)
  config = base()
  config.name = f"depth_n{arg.size}_b{arg.tokens_per_param}"
  budget, study = config.budget, config.study
  budget.num_params = 100_000 if arg.tiny else 1000 * arg.size
  budget.dense_tokens = 20_000 if arg.tiny else arg.tokens_per_param * budget.num_params
  budget.seq_len = 64 if arg.tiny else 128
  budget.reuse = "strict"
  budget.convention = "executed"
  if arg.tiny:
    config.arms.dense = dense_arm(d_head=16)
    config.arms.moe = moe_arm(num_layers=2, d_model=32, d_head=16, multiple_of=4)
  else:
    dense, moe = of_size(arg.size, SHAPES_OF_2_BYTES if arg.tokens_per_param == 2 else SHAPES)
    config.arms.dense = dense_of(*dense)
    config.arms.moe = moe_of(*moe)
  study.method = "activation_rate"
  study.activation_rates = FEW_RATES if arg.few else RATES
  study.seeds = (0, 1, 2)
  study.learning_rate_grid = LEARNING_RATES
  study.grid_extensions = 2
  if arg.tiny:
    study.activation_rates, study.seeds, study.grid_extensions = (0.2, 0.3, 0.4), (0,), 0
    study.small_multiples = (0.5,)
  elif arg.few:
    study.compute_multiples, study.small_multiples = (), (0.5,) if arg.size > 200 else ()
  else:
    study.small_multiples = (0.5, 0.25)
  if arg.tokens_per_param >= 80:
    # On the machine of the study these batches of 5,000 to 10,000 tokens took half to two thirds of
    # the time in micro-batches of 1,000.
    budget.batch_multiple = config.train.micro_batch_sequences = 8
  config.data.draw_per_seed = True
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0  # the held-out works, all of them
  config.train.log_every = 50
  return config


def dense_of(layers, width, **fields):
  """The dense arm of a shape; fields: of the arm, further ones."""
  return dense_arm(num_layers=layers, d_model=width, d_head=16, multiple_of=1, **fields)


def moe_of(layers, width, d_expert, d_ffn, activation_rate=0.0, multiple_of=2, **fields):
  """The MoE arm of a shape: its first layer is dense if it has others; fields: further ones."""
  return moe_arm(
    activation_rate, num_layers=layers, d_model=width, d_expert=d_expert, d_ffn=d_ffn, d_head=16,
    layout="full" if layers == 1 else "1dense", multiple_of=multiple_of, **fields,
  )  # fmt: skip


def entry(table, argument, value, way):
  """The entry of a table of shapes or cells for the value of a config's argument.

  Raises:
    UserError: the table has none; `way` says how to add one.
  """
  if value not in table:
    known = ", ".join(map(str, table))
    raise UserError(f"{argument}={value}: the config knows {known}; take one of these, or {way}")
  return table[value]


def of_size(size, shapes):
  """The shapes of a size, in thousands of parameters, from a table of them."""
  return entry(shapes, "size", size, "choose shapes for it with configs/depth_shapes.py")
