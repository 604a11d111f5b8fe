"""Which shape should each side have in depth.py? As many are tried for dense as for MoE.

  moe-parity plan  --config=configs/depth_shapes.py
  moe-parity study --config=configs/depth_shapes.py --workdir=runs/shapes --config.data.source=STORE
  moe-parity study --config=configs/depth_shapes.py:tiny --workdir=runs/tiny_shapes

The second with --config.data.tokenizer=store; STORE is that of depth.py. Seven shapes a side at the
smaller size of depth.py, the MoE ones at one activation rate, with 2 bytes a parameter. Every shape
tries the learning rates of depth.py and is then trained at its best with one seed, which is none of
those that depth.py compares. So both sides get the same number of shapes, rates and runs: 56 in
all, half an hour on two quiet CPU cores."""

from configs.depth import LEARNING_RATES
from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm

SIZE = 200  # thousands of parameters
DENSE = ((2, 80), (2, 96), (2, 112), (3, 80), (3, 96), (4, 64), (6, 64))  # layers, d_model
MOE = (  # layers, d_model, d_expert, d_ffn of the dense layer (0: the planner's)
  (2, 32, 8, 0),
  (2, 48, 4, 44),
  (2, 48, 8, 44),
  (2, 48, 8, 0),
  (2, 48, 16, 0),
  (3, 32, 8, 0),
  (4, 32, 8, 0),
)  # three layers of 48 or two of 64 cannot have so low a rate
SEED = 3


def get_config(arg=None):
  arg = parse_arg(arg, activation_rate=0.2, tiny=False)
  config = base()
  config.name = "depth_shapes"
  budget = config.budget
  budget.num_params = 1000 * SIZE
  budget.dense_tokens = 20_000 if arg.tiny else 2 * budget.num_params
  budget.seq_len = 64 if arg.tiny else 128
  budget.reuse = "strict"
  budget.convention = "executed"
  few = slice(2, 4) if arg.tiny else slice(None)
  # The first dense arm sets C, and the text is what the dense arm that reads least sees.
  for layers, width in DENSE[few]:
    config.arms[f"dense_{layers}x{width}"] = dense_arm(
      num_layers=layers, d_model=width, d_head=16, multiple_of=1
    )
  for layers, width, d_expert, d_ffn in MOE[few]:
    name = f"moe_{layers}x{width}_{d_expert}" + (f"_{d_ffn}" if d_ffn else "")
    config.arms[name] = moe_arm(
      arg.activation_rate, num_layers=layers, d_model=width, d_head=16, d_expert=d_expert,
      d_ffn=d_ffn, multiple_of=1,
    )  # fmt: skip
  for name in config.arms:
    config.arms[name].seeds = (SEED,)
  config.study.learning_rate_grid = LEARNING_RATES[:2] if arg.tiny else LEARNING_RATES
  config.study.grid_extensions = 0
  config.data.draw_per_seed = True
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0
  return config
