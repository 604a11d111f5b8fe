"""`moe-parity import`."""

from moe_parity.commands.common import folder_here, on_disk, place

HELP = "turn a Hugging Face folder into a run, to evaluate and generate with"
ABOUT = """\
Makes a run of a Hugging Face folder (Llama, Qwen2Moe, Mixtral, Ernie4.5-MoE, or an export), bit for
bit.

  moe-parity import downloads/llama --out=runs/llama

Writes a new run folder for evaluate, generate and export; refuses what the model cannot hold
exactly, with the field or tensor that does not fit. Needs pip install 'moe_parity[hf]'.
"""


def arguments(parser) -> None:
  parser.add_argument("folder", type=place, metavar="HF_DIR")
  parser.add_argument("--out", required=True, type=place, metavar="RUN", help="a new folder")
  parser.add_argument(
    "--data", default="builtin", metavar="SOURCE",
    help="text that evaluate scores, as data.source of a config",
  )  # fmt: skip
  parser.add_argument(
    "--as", dest="as_class", default="", metavar="CLASS",
    help="the known model_type that computes what a config.json of another layout describes",
  )  # fmt: skip
  parser.add_argument(
    "--ignore-keys", default="", metavar="A,B",
    help="keys of such a config.json that decide nothing",
  )  # fmt: skip


def run(args) -> int:
  on_disk(args.folder, "import reads a folder of this machine")
  folder_here(args.out, "import")
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.interchange.import_hf import import_folder

  ignored = [key for key in args.ignore_keys.split(",") if key]
  imported = import_folder(
    args.folder, args.out, args.data, as_class=args.as_class, ignored_keys=ignored
  )
  a = imported.architecture
  experts = f", {a.num_experts} experts, {a.experts_per_token} a token" if a.is_moe else ""
  print(f"{args.out}: {a.num_layers} layers of {a.d_model}, {a.vocab_size:,} ids{experts}")
  if imported.unread_keys:
    print(
      f"keys of config.json that no model of its class reads: {', '.join(imported.unread_keys)}"
    )
  if imported.unread_tensors:
    number, first = len(imported.unread_tensors), imported.unread_tensors[0]
    print(f"{number} tensors of heads that predict further tokens were left out, such as {first}")
  for line in imported.notes:
    print(line)
  # The text of --data was hardly ever tokenized by this model's tokenizer before.
  print(
    f"next: moe-parity evaluate {args.out} --prepare-data   or   moe-parity generate {args.out}"
    " --prompt=TEXT"
  )
  return 0
