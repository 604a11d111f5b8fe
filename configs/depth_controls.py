"""Does a dense model of better shape explain the lead of MoE in depth.py?

  moe-parity plan  --config=configs/depth_controls.py
  moe-parity plan  --config=configs/depth_controls.py:tokens_per_param=20
  moe-parity study --config=configs/depth_controls.py --workdir=runs/more --config.data.source=STORE
  moe-parity study --config=configs/depth_controls.py:tiny --workdir=runs/tiny_more

The third with --config.data.tokenizer=store; STORE is that of depth.py. Dense, the best MoE arm and
the control of its active size are those of depth.py at N = 200 thousand and 5 or 20 bytes a
parameter. With them are compared dense models that are wider for their depth, of about N and, at 5
bytes, of a half and a quarter of it. All try the learning rates that were tried there and have
three seeds. 72 runs at 5 bytes, 40 at 20: one hour and two hours on one quiet CPU core."""

from configs.depth import SHAPES, dense_of, entry, moe_of
from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm

SIZE = 200  # thousands of parameters
CELLS = {  # bytes a parameter: rate of the best MoE arm; learning rates that the grid of depth.py
  # grew to; wide dense models as a multiple of N, layers, d_model. A multiple just below 1 makes a
  # control of one, which does not change the text that all arms read.
  5: (
    0.2,
    (0.002, 0.004, 0.008, 0.016, 0.032, 0.064),
    ((0.25, 2, 48), (0.5, 2, 64), (0.97, 2, 112), (0.999, 2, 96), (0.97, 1, 128)),
  ),
  20: (0.25, (0.004, 0.008, 0.016, 0.032, 0.064), ((0.97, 2, 112), (0.999, 2, 96))),
}


def get_config(arg=None):
  arg = parse_arg(arg, tokens_per_param=5, tiny=False)
  rate, learning_rates, wide = entry(
    CELLS, "tokens_per_param", arg.tokens_per_param, "add the best rate of its cell to CELLS"
  )
  config = base()
  config.name = "depth_controls"
  budget = config.budget
  budget.num_params = 1000 * SIZE
  budget.dense_tokens = 20_000 if arg.tiny else arg.tokens_per_param * budget.num_params
  budget.seq_len = 64 if arg.tiny else 128
  budget.reuse = "strict"
  budget.convention = "executed"
  dense, moe = SHAPES[SIZE]
  config.arms.dense = dense_of(*dense)
  best = f"moe_{100 * rate:.0f}"
  config.arms[best] = moe_of(*moe, rate)
  config.arms.dense_active = dense_arm(active_of=best, multiple_of=1)
  for multiple, layers, width in wide:
    times = "" if multiple > 0.9 else f"{multiple:g}_".replace(".", "p")
    name = f"dense_{times}{layers}x{width}"
    config.arms[name] = dense_of(layers, width, params_multiple=multiple)
  for name in config.arms:
    config.arms[name].seeds = (0,) if arg.tiny else (0, 1, 2)
  config.study.learning_rate_grid = learning_rates[:2] if arg.tiny else learning_rates
  config.study.grid_extensions = 0
  config.data.draw_per_seed = True
  config.train.log_every = 50
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0
  return config
