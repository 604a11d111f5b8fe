"""Which shape should each side have in depth.py? As many are tried for dense as for MoE.

  moe-parity plan  --config=configs/depth_shapes.py
  moe-parity study --config=configs/depth_shapes.py --workdir=runs/shapes --config.data.source=STORE
  moe-parity plan  --config=configs/depth_shapes.py:size=100,tokens_per_param=20
  moe-parity study --config=configs/depth_shapes.py:tiny --workdir=runs/tiny_shapes

The second with --config.data.tokenizer=store; STORE is that of depth.py. At N = 100, 200 or 400
thousand seven shapes a side, the MoE ones at one activation rate, with 2 bytes a parameter; with
more text, at 100 thousand, four a side: the three that did best there, and one more of one layer.
Every shape tries the learning rates of depth.py and is then trained at its best with one seed,
which is none of those that depth.py compares. So both sides get the same number of shapes, rates
and runs. 56 runs at 200 thousand parameters are half an hour on two quiet CPU cores."""

from configs.depth import LEARNING_RATES, dense_of, moe_of, of_size
from moe_parity.config import parse_arg
from moe_parity.defaults import base

# By size, as in depth.py. Three layers of 32 at size 100, three of 48 or two of 64 at size 200
# cannot have so low a rate.
SHAPES = {
  100: (
    ((1, 96), (2, 48), (2, 64), (2, 80), (3, 48), (3, 64), (4, 48)),
    ((2, 32, 4, 0), (2, 32, 4, 30), (2, 32, 8, 0), (2, 32, 8, 30), (2, 32, 16, 0), (3, 16, 8, 0),
     (4, 16, 4, 0)),
  ),
  200: (
    ((2, 80), (2, 96), (2, 112), (3, 80), (3, 96), (4, 64), (6, 64)),
    ((2, 32, 8, 0), (2, 48, 4, 44), (2, 48, 8, 44), (2, 48, 8, 0), (2, 48, 16, 0), (3, 32, 8, 0),
     (4, 32, 8, 0)),
  ),
  400: (
    ((2, 112), (2, 128), (2, 144), (3, 96), (3, 128), (4, 96), (6, 80)),
    ((2, 48, 8, 0), (2, 64, 8, 0), (2, 64, 8, 64), (2, 64, 16, 0), (2, 64, 16, 56), (3, 48, 8, 0),
     (4, 48, 8, 0)),
  ),
}  # fmt: skip
# By side the three whose tries were best with 2 bytes, and one more model of one layer.
FINALISTS = {
  100: (
    ((1, 96), (1, 128), (2, 64), (2, 80)),
    ((1, 48, 4, 0), (2, 32, 4, 0), (2, 32, 8, 30), (2, 32, 16, 0)),
  ),
}
SEED = 3


def get_config(arg=None):
  arg = parse_arg(arg, size=200, tokens_per_param=2, activation_rate=0.2, tiny=False)
  dense, moe = of_size(arg.size, SHAPES if arg.tokens_per_param == 2 else FINALISTS)
  config = base()
  config.name = "depth_shapes"
  budget = config.budget
  budget.num_params = 1000 * arg.size
  budget.dense_tokens = 20_000 if arg.tiny else arg.tokens_per_param * budget.num_params
  budget.seq_len = 64 if arg.tiny else 128
  budget.reuse = "strict"
  budget.convention = "executed"
  few = slice(2, 4) if arg.tiny else slice(None)
  # The first dense arm sets C, and the text is what the dense arm that reads least sees.
  for layers, width in dense[few]:
    config.arms[f"dense_{layers}x{width}"] = dense_of(layers, width)
  for layers, width, d_expert, d_ffn in moe[few]:
    name = f"moe_{layers}x{width}_{d_expert}" + (f"_{d_ffn}" if d_ffn else "")
    config.arms[name] = moe_of(layers, width, d_expert, d_ffn, arg.activation_rate, multiple_of=1)
  for name in config.arms:
    config.arms[name].seeds = (SEED,)
  config.study.learning_rate_grid = LEARNING_RATES[:2] if arg.tiny else LEARNING_RATES
  # With more text the best rate may lie beyond the three, on either side.
  config.study.grid_extensions = 1 if arg.tokens_per_param > 2 and not arg.tiny else 0
  config.data.draw_per_seed = True
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0
  return config
