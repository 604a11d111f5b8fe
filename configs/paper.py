"""What the paper's three budgets share: arms from its published tables. Not a config itself."""

from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm
from moe_parity.errors import UserError
from moe_parity.paper import tables

SHAPE = ("layout", "num_layers", "d_model", "num_heads", "num_kv_heads", "d_head", "d_ffn",
         "num_experts", "experts_per_token", "d_expert", "d_shared")  # fmt: skip


def budget(arg, name, num_params, dense, moe_table, cards=None):
  """A config with N, C and D^ of one of the paper's budgets.

  Args:
    arg: the text after the colon (see the config files).
    num_params: N, between the dense row's and the MoE rows'.
    dense: row of Table 14 that sets N and C; its tokens are D^ under strict reuse.
    moe_table: table whose shapes are the MoE arms, one for each activation rate it holds.
    cards: GiB of a GPU -> (remat, micro-batch) that it has room for.
  """
  arg = parse_arg(
    arg, arms="all", activation_rate=0.0, reuse="strict", printed=False, tiny=False, gib=0
  )
  config = base()
  config.name = name
  config.data.tokenizer = "bpe:65536"
  config.model.dtype = "bfloat16"
  config.model.remat = "layer"
  if arg.gib:
    for_one_card(config, arg.gib, cards)
  config.optimizer.warmup_share = 0.01  # Table 4: clip(0.01 * iters, 200, 2000)
  config.budget.seq_len = 2048
  config.budget.batch_multiple = 8
  config.budget.num_params = num_params
  row = tables.row("table14", dense)
  config.budget.dense_tokens = row.num_tokens
  config.budget.reuse = arg.reuse
  arms = {"dense": lambda: published_arm(row, arg.printed)}
  arms["dense_2c"] = lambda: published_arm(row, False, compute_multiple=2.0)
  for shape in moe_rows(moe_table):
    arms[f"moe_{round(shape['ra_pct']):02d}"] = lambda s=shape: published_arm(s, arg.printed)
  chosen = choose(arg, arms, moe_rows(moe_table))
  if arg.tiny:
    make_tiny(config, [name for name in chosen if name != "dense_2c"], arms)
  else:
    for key in chosen:
      config.arms[key] = arms[key]()
  return config


def for_one_card(config, gib, cards):
  """Sets what a GPU of `gib` GiB has room for.

  Raises:
    UserError: a memory that the budget was compiled for and does not fit, or was not compiled for.
  """
  if gib not in (cards or {}):
    known = ", ".join(map(str, cards or {}))
    way = f"use gib={known}" if known else "use several cards: --config.mesh.fsdp"
    raise UserError(f"gib={gib}: {config.name} is not known to fit one such card; {way}")
  config.model.remat, config.train.micro_batch_sequences = cards[gib]


def moe_rows(name):
  """Rows of a table, one an activation rate in whole percent, in printed order."""
  return list({round(row["ra_pct"]): row for row in reversed(tables.table(name))}.values())[::-1]


def published_arm(row, printed, **fields):
  """The shape of a published row; with `printed`, its learning rate and batch as well."""
  shape = {name: getattr(row.architecture, name) for name in SHAPE}
  if printed:
    fields |= {"peak_learning_rate": row["lr"], "batch_sequences": row["batch_seqs"]}
  if row.architecture.is_moe:
    return moe_arm(shared_expert=shape["d_shared"] > 0, **shape, **fields)
  shape.pop("layout")
  return dense_arm(**shape, **fields)


def choose(arg, arms, rows):
  """Names of the arms that the argument asks for.

  Raises:
    UserError: an activation rate the table does not hold, or an unknown choice of arms.
  """
  if arg.activation_rate:
    rates = [round(row["ra_pct"] / 100, 4) for row in rows]
    nearest = min(rates, key=lambda rate: abs(rate - arg.activation_rate))
    if abs(nearest - arg.activation_rate) > 0.02:
      raise UserError(
        f"activation_rate={arg.activation_rate} is none of the paper's"
        f" {', '.join(map(str, sorted(rates)))}; take one of them, or write a config with"
        " moe_arm(activation_rate) and let the solver find a shape"
      )
    return ["dense", f"moe_{round(100 * nearest):02d}"]
  groups = {"all": list(arms), "moe": [name for name in arms if name.startswith("moe")]}
  groups |= {name: [name] for name in arms}
  if arg.arms not in groups:
    raise UserError(f"arms={arg.arms!r} is not one of {', '.join(groups)}")
  return list(dict.fromkeys(["dense", *groups[arg.arms]]))  # dense sets C and D^


def make_tiny(config, names, arms):
  """The same comparison at a size a CPU test can run: rates kept, everything else small."""
  config.data.tokenizer = "bytes"
  config.model.dtype = "float32"
  config.model.remat = "none"
  config.budget.num_params, config.budget.dense_tokens = 100_000, 20_000
  config.budget.seq_len, config.budget.batch_multiple = 64, 1
  config.evaluation.max_tokens = 5_000
  for name in names:
    rate = int(name.removeprefix("moe_")) / 100 if name != "dense" else 0
    small = dict(d_head=16, multiple_of=4)
    config.arms[name] = moe_arm(rate, **small) if rate else dense_arm(**small)
