"""`moe-parity generate`."""

import dataclasses
import json
import pathlib
import sys
import time

from moe_parity.commands.common import inference_arguments, json_argument, on_disk, place
from moe_parity.errors import UserError
from moe_parity.files import parse_json
from moe_parity.training.run_folder import CONFIG

HELP = "continue text with a trained run"
ABOUT = """\
Continues a prompt with a trained run, from any of its checkpoints, greedy or sampled.

  moe-parity generate runs/mine/runs/moe_20-s0 --prompt "It was"
  moe-parity generate runs/mine/runs/moe_20-s0/sft --chat --prompt "Who wrote Emma?"

Prints the text as it is written (--json for machines); writes nothing.
"""


def arguments(parser) -> None:
  parser.add_argument("folder", type=place, metavar="RUN")
  parser.add_argument(
    "--prompt", action="append", default=[], metavar="TEXT", help="repeat it for a batch"
  )
  parser.add_argument(
    "--prompts",
    type=pathlib.Path,
    metavar="FILE",
    help="JSON lines: texts or {'prompt': text}",
  )
  parser.add_argument(
    "--chat", action="store_true",
    help="a prompt is what a user says to a fine-tuned run; print its answer",
  )  # fmt: skip
  parser.add_argument(
    "--max-tokens",
    type=int,
    default=0,
    metavar="N",
    help="tokens to write; 0: up to the model's last position",
  )
  parser.add_argument("--temperature", type=float, default=0.0, help="0: the most likely token")
  parser.add_argument(
    "--top-k",
    type=int,
    default=0,
    metavar="K",
    help="draw from the K most likely tokens; 0: from all",
  )
  parser.add_argument(
    "--top-p", type=float, default=1.0, metavar="P",
    help="draw from the most likely tokens whose probabilities add up to P",
  )  # fmt: skip
  parser.add_argument(
    "--stop", action="append", default=[], metavar="TEXT", help="also stop before this text"
  )
  parser.add_argument("--seed", type=int, default=0)
  inference_arguments(parser, "prompt and text")
  json_argument(parser)


def run(args) -> int:
  from moe_parity.inference.sampling import Sampling
  from moe_parity.planning.mesh_sizes import read_mesh

  sampling = Sampling(args.temperature, args.top_k, args.top_p)
  sizes, prompts = read_mesh(args), _prompts(args)
  on_disk(args.folder, "generate reads a run on this machine")
  template = _template(args)
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.inference.completion import complete
  from moe_parity.training.load_run import open_generator

  generator, tokenizer = open_generator(
    args.folder,
    sizes,
    step=args.step or None,
    dtype=args.dtype,
    num_positions=args.context,
    tokenizer=args.tokenizer,
  )
  shown = [f"{prompt}\n" for prompt in prompts] if args.chat else prompts
  printer = Printer(shown, sys.stdout, quiet=args.json)
  start = time.perf_counter()
  done = complete(
    generator,
    tokenizer,
    prompts,
    max_tokens=args.max_tokens,
    sampling=sampling,
    stop=args.stop,
    seed=args.seed,
    on_text=printer.add,
    template=template,
  )
  seconds = time.perf_counter() - start
  if args.json:
    print(json.dumps([dataclasses.asdict(completion) for completion in done], indent=2))
    return 0
  num_tokens = sum(len(completion.tokens) for completion in done)
  print(
    f"{num_tokens} tokens in {seconds:.1f} s, compiling included; ended by"
    f" {', '.join(completion.finish for completion in done)}",
    file=sys.stderr,
  )
  return 0


def _template(args):
  """The run's chat template; None without --chat.

  Raises:
    UserError: the run has none.
  """
  if not args.chat or not (args.folder / CONFIG).is_file():  # no run: said when it is opened
    return None
  from moe_parity.data.chat_template import read

  template = read(args.folder)
  if template is None:
    raise UserError(
      f"--chat: {args.folder} was never trained on chats; fine-tune it (moe-parity sft), or leave"
      " --chat out"
    )
  return template


def _prompts(args) -> list[str]:
  """
  Raises:
    UserError: a file that holds no prompts, or a line of it that is none; no prompt at all.
  """
  prompts = list(args.prompt)
  if args.prompts:
    if not args.prompts.is_file():
      raise UserError(f"--prompts={args.prompts} is no file; give one with a JSON text a line")
    lines = args.prompts.read_bytes().removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
      try:
        value = parse_json(line)
      except ValueError as error:
        raise UserError(f"{args.prompts}, line {number} is not JSON ({error}); quote it") from None
      value = value.get("prompt") if isinstance(value, dict) else value
      if not isinstance(value, str):
        raise UserError(
          f'{args.prompts}, line {number} is no prompt; write a text or {{"prompt": "..."}}'
        )
      prompts.append(value)
  for text in (*prompts, *args.stop):
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes of the command line
      raise UserError(f"{text!a} is not UTF-8; give text as UTF-8")
  if not prompts:
    raise UserError('there is no prompt; give --prompt="Once upon a time" or --prompts=FILE')
  return prompts


class Printer:
  """Prompts and completions on a terminal, one after another: the first that is not done as it
  comes, what a later one has by then when it is its turn."""

  def __init__(self, prompts: list[str], out, quiet: bool = False):
    self._out, self._quiet = out, quiet
    self._waiting = [[prompt] for prompt in prompts]
    self._done = [False] * len(prompts)
    self._turn = 0

  def add(self, row: int, text: str, is_last: bool) -> None:
    """More text of a prompt; `is_last`: it is done."""
    self._waiting[row].append(text)
    self._done[row] = is_last
    while not self._quiet and self._turn < len(self._waiting):
      print("".join(self._waiting[self._turn]), end="", file=self._out, flush=True)
      self._waiting[self._turn] = []
      if not self._done[self._turn]:
        return
      self._turn += 1
      print("\n" if self._turn < len(self._waiting) else "", file=self._out, flush=True)
