"""What several commands share: their arguments, and the way from a config to a plan and its
data."""

import argparse
import contextlib
import os
import pathlib
import tempfile

from moe_parity.errors import UserError
from moe_parity.planning.mesh_sizes import AXES

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the checkout: configs/ and tests/


def config_argument(parser: argparse.ArgumentParser) -> None:
  """`--config`; what follows it as `--config.field=value` reaches the command as
  `args.overrides`."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE.py[:ARG]",
    help="its docstring lists the arguments; set fields by --config.name=value",
  )


def workdir_argument(parser: argparse.ArgumentParser, help_: str) -> None:
  """`--workdir`: the folder a command makes or continues."""
  parser.add_argument("--workdir", required=True, type=place, help=help_)


def checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --step and --tokenizer: which checkpoint of a run is read, and how its text."""
  parser.add_argument("--step", type=int, default=0, metavar="N", help="checkpoint; 0: the newest")
  parser.add_argument(
    "--tokenizer", default="", metavar="FILE", help="tokenizer.json, where the data are not here"
  )


def inference_arguments(parser: argparse.ArgumentParser, window: str) -> None:
  """Adds what loads a run's model to compute with: checkpoint, dtype, --context and a mesh.

  Args:
    window: what has to fit the positions that the model reads.
  """
  checkpoint_arguments(parser)
  parser.add_argument("--dtype", default="", help="float32 | bfloat16; as trained if left out")
  parser.add_argument(
    "--context",
    type=int,
    default=0,
    metavar="N",
    help=f"positions of {window}; 0: those of training, ALiBi alone takes more",
  )
  mesh_arguments(parser)


def mesh_arguments(parser: argparse.ArgumentParser) -> None:
  """`--data`, `--fsdp` and `--expert`: the mesh a trained model is loaded on."""
  for axis in AXES:
    parser.add_argument(
      f"--{axis}", type=int, default=1, metavar="N", help=f"devices along the mesh axis {axis}"
    )


def place(text: str) -> str | pathlib.Path:
  """A folder of this machine's, or the URL of one elsewhere as it was written.

  Shells leave the ~ of --workdir=~/runs as it is, and a folder of that name would be made.
  """
  if text == "~" or text.startswith("~/"):
    return pathlib.Path(os.path.expanduser(text))
  return text if "://" in text else pathlib.Path(text)


def on_disk(path: str | pathlib.Path, what: str, way_out: str = "") -> pathlib.Path:
  """The path, for commands that work on this machine's folders only.

  Args:
    way_out: for a folder that is written; "" for one that is read, which is copied first.
  Raises:
    UserError: it is a URL.
  """
  if isinstance(path, str):
    way_out = way_out or f"copy it to a disk ({copy_command(path)}) and give the folder there"
    raise UserError(f"{path}: {what}, `study` alone works on a bucket; {way_out}")
  return path


def folder_here(path: str | pathlib.Path, what: str) -> pathlib.Path:
  """The folder that a command writes.

  Raises:
    UserError: it is a URL.
  """
  way_out = "give one, and copy it when it is done"
  return on_disk(path, f"{what} writes into a folder of this machine", way_out)


def copy_command(url: str) -> str:
  """What copies the folder at a URL into the working directory."""
  if url.startswith("gs://"):
    return f"gcloud storage cp -r {url.rstrip('/')} ."
  return "with the tool of that service"


def process_arguments(parser: argparse.ArgumentParser) -> None:
  """For commands that train: start the same command once a host, all on one shared --workdir."""
  group = parser.add_argument_group("several processes as one run")
  group.add_argument(
    "--coordinator", default="", metavar="HOST:PORT",
    help="address of process 0, or auto: as the cluster says (Cloud TPU, Slurm, ...)",
  )  # fmt: skip
  parser.add_argument(
    "--compile-cache", default="", metavar="PLACE",
    help="where compiled programs are stored ($JAX_COMPILATION_CACHE_DIR or the cache folder);"
    " also gs://, which outlives a host",
  )  # fmt: skip
  group.add_argument("--num-processes", type=int, default=0, metavar="N")
  group.add_argument("--process-id", type=int, default=-1, metavar="I", help="from 0")


def worker_argument(parser: argparse.ArgumentParser) -> None:
  """`--worker`, for commands that hold leases; its default is what the engine calls this worker."""
  from moe_parity.study.workers.identity import worker_name

  parser.add_argument(
    "--worker", default=worker_name(os.environ), metavar="NAME",
    help="the same name after a restart: this worker takes its own run back at once"
    " (default: as Slurm arrays, JobSets, SkyPilot and Cloud TPUs name it)",
  )  # fmt: skip


def processes(args) -> dict:
  """What `start_jax` takes of the arguments; nothing where a command has none of them."""
  names = ("coordinator", "num_processes", "process_id", "compile_cache")
  return {name: getattr(args, name) for name in names if hasattr(args, name)}


def idle_devices(config) -> str:
  """What to say where a run leaves devices of this machine unused; "" where it does not."""
  import jax

  from moe_parity.planning.mesh_sizes import MeshSizes, read_mesh

  idle = jax.device_count() - 1
  if not idle or read_mesh(config.mesh) != MeshSizes():
    return ""
  return f"note: {idle} of {idle + 1} devices stay idle; --config.mesh.data=-1 uses them all"


def json_argument(parser: argparse.ArgumentParser) -> None:
  """`--json`, which every command that prints a table has."""
  parser.add_argument("--json", action="store_true", help="print JSON for machines")


def load_config(args):
  """The config file with the command line's say."""
  from moe_parity import config

  return config.load(args.config, args.overrides)


def open_data(config):
  """The config's token store, made first where it is not there yet, with a bar while it is made."""
  from moe_parity.console import bytes_bar
  from moe_parity.data import prepare

  with bytes_bar() as progress:
    return prepare.open_data(config.data, progress)


def check_workdir(workdir: str | pathlib.Path) -> None:
  """Tries to write into a folder, which is made for that and removed; a bucket is left alone.

  Raises:
    UserError: it cannot be made or written.
  """
  if isinstance(workdir, str):
    return
  missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
    for folder in missing:
      with contextlib.suppress(OSError):  # another worker writes into it by now
        folder.rmdir()
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be made or written ({error.strerror}); choose another folder"
    ) from None


def is_only_listing(args) -> bool:
  """Whether a command that could write was asked to print only."""
  return getattr(args, "dry_run", False) or getattr(args, "list_runs", False)


def planned(args):
  """(config, plan, store): the plan knows the corpus, so that a budget it cannot feed is refused
  before JAX is loaded. Of several comparisons it is the plan of the first."""
  from moe_parity.data.mixture import planner_inputs
  from moe_parity.evaluation.split_rows import check_run_rows
  from moe_parity.study.comparisons import Results, plan_comparisons

  config = load_config(args)
  plan_comparisons(config, Results(None))  # wrong numbers are named before any text is read
  if hasattr(args, "workdir") and not is_only_listing(args):
    check_workdir(args.workdir)
  store = open_data(config)
  inputs = planner_inputs(store, config)
  comparisons = plan_comparisons(config, Results(None), **inputs)
  for comparison in comparisons:
    for arm in comparison.plan.arms:
      check_run_rows(config, arm, store.validation)
  return config, comparisons[0].plan, store
