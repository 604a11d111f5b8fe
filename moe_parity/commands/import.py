"""`moe-parity import`."""

import pathlib

HELP = "turn a Hugging Face folder into a run, to evaluate and generate with"
ABOUT = """\
Makes a run of a Hugging Face folder (Llama, Qwen2Moe, Mixtral, or an export), bit for bit.

  moe-parity import downloads/llama --out=runs/llama

Writes a new run folder for evaluate, generate and export; refuses what the model cannot hold
exactly, with the field or tensor that does not fit. Needs pip install 'moe_parity[hf]'.
"""


def arguments(parser) -> None:
  parser.add_argument("folder", type=pathlib.Path, metavar="HF_DIR")
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="RUN", help="a new folder")
  parser.add_argument(
    "--data", default="builtin", metavar="SOURCE",
    help="text that evaluate scores, as data.source of a config",
  )  # fmt: skip


def run(args) -> int:
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.interchange.import_hf import import_folder

  a = import_folder(args.folder, args.out, args.data)
  experts = f", {a.num_experts} experts, {a.experts_per_token} a token" if a.is_moe else ""
  print(f"{args.out}: {a.num_layers} layers of {a.d_model}, {a.vocab_size:,} ids{experts}")
  print(f"next: moe-parity evaluate {args.out}   or   moe-parity generate {args.out} --prompt=TEXT")
  return 0
