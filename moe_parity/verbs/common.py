"""What several verbs share: their arguments, and the way from a config to a plan and its data."""

import argparse
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the checkout: configs/ and tests/


def config_argument(parser: argparse.ArgumentParser) -> None:
  """`--config`; what follows it as `--config.field=value` reaches the verb as `args.overrides`."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE.py[:ARG]",
    help="its docstring lists the arguments; set fields by --config.name=value",
  )


def workdir_argument(parser: argparse.ArgumentParser, help_: str) -> None:
  """`--workdir`: the folder a verb makes or continues."""
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help=help_)


def json_argument(parser: argparse.ArgumentParser) -> None:
  """`--json`, which every verb that prints a table has."""
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


def planned(args):
  """(config, plan, store): the plan knows the corpus, so that a budget it cannot feed is refused
  before JAX is loaded. Of a study in parts it is the plan of the first."""
  from moe_parity.data.mixture import facts
  from moe_parity.study.parts import Results, plan_parts

  config = load_config(args)
  plan_parts(config, Results(None))  # wrong numbers are named before any text is read
  store = open_data(config)
  return config, plan_parts(config, Results(None), **facts(store, config))[0].plan, store
