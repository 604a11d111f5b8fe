"""The rooms of the package import one way, without circles, and planning needs no array library."""

import ast
import collections
import pathlib
import re
import subprocess
import sys

import pytest

from tests.list_slow import listed

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "moe_parity"
# Every room may import those before it. Rooms of one line know nothing of each other.
ORDER = (
  ("errors",),
  ("escapes", "console", "files", "markdown", "command_line", "launch"),
  ("fields",),
  ("stored",),
  ("defaults", "config"),
  ("planning",),
  ("paper", "data", "kernels"),
  ("sharding",),
  ("experts",),
  ("model",),
  ("evaluation", "inference"),
  ("training",),
  ("finetuning", "downstream", "interchange", "aot"),
  ("startup",),
  ("study",),
  ("report",),
  ("benchmarks",),
  ("api",),
  ("commands",),
  ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
# Rooms that may import these of ours only.
ALONE = {"kernels": {"planning", "errors"}, "launch": {"errors"}, "fields": {"errors"},
         "stored": {"errors", "files", "fields"}}  # fmt: skip


def module_of(path):
  return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(path):
  """Modules of the package that a file imports anywhere."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "moe_parity":
      for name in node.names:
        full = f"{node.module}.{name.name}"
        found.add(full if full in MODULES else node.module)
    elif isinstance(node, ast.Import):
      found |= {name.name for name in node.names if name.name.split(".")[0] == "moe_parity"}
  return found & MODULES.keys()


def room_of(module):
  return module.split(".")[1] if "." in module else ""


EDGES = {module: imports(path) for module, path in MODULES.items()}


def test_every_room_has_its_place_in_the_order():
  assert {room_of(module) for module in MODULES} - {""} <= FLOOR.keys()
  assert len(MODULES) > 150


@pytest.mark.parametrize("room", sorted({room_of(module) for module in MODULES} - {""}))
def test_a_room_imports_only_rooms_before_it(room):
  for module, found in EDGES.items():
    for other in {room_of(name) for name in found} - {room, ""}:
      if room_of(module) == room:
        assert FLOOR[other] < FLOOR[room], f"{module} imports {other}"
        assert other in ALONE.get(room, {other}), f"{module} imports {other}"


def test_no_files_import_each_other_in_a_circle():
  state: dict[str, str] = {}

  def visit(module, path):
    if state.get(module) == "done":
      return
    assert state.get(module) != "open", " -> ".join([*path[path.index(module) :], module])
    state[module] = "open"
    for other in sorted(EDGES[module]):
      visit(other, [*path, module])
    state[module] = "done"

  for module in sorted(MODULES):
    if room_of(module):  # the package itself only offers names
      visit(module, [])


def functions(path):
  return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]


def test_every_function_fits_a_screen():
  """60 lines without its docstring, 75 with it."""
  long = []
  for module, path in MODULES.items():
    for function in functions(path):
      lines = function.end_lineno - function.lineno + 1
      first = function.body[0]
      doc = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
      if lines > 75 or lines - doc > 60:
        long.append(f"{module}.{function.name}: {lines} lines")
  assert not long


def test_test_names_have_at_most_60_characters():
  names = [
    f.name
    for path in (ROOT / "tests").rglob("*.py")
    for f in functions(path)
    if f.name.startswith("test_")
  ]
  assert len(names) > 500 and not [name for name in names if len(name) > 60]


# Modules that parse JSON of their own making: what they just wrote, or a process they started.
OWN_JSON = {"config", "files", "data/bpe_training", "data/prepare", "training/run_folder",
            "study/examination", "study/workers/multi_process", "interchange/check",
            "interchange/export", "benchmarks/torch_reference", "benchmarks/suite",
            "benchmarks/against_maxtext", "launch/gke", "launch/tpu_slices",
            "launch/tpu_look"}  # fmt: skip


def test_json_of_others_is_read_in_one_place():
  """`files.parse_json` refuses one name twice, deep nesting and what is no JSON, in one line."""
  found = {
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if re.search(r"\bjson\.loads?\(", path.read_text())
  }
  assert found == OWN_JSON


def test_no_class_name_stands_for_two_things():
  files = collections.defaultdict(list)
  for module, path in MODULES.items():
    # Files that travel with an exported model name its layers as Transformers do.
    if not module.startswith("moe_parity.interchange.remote_code"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
          files[node.name].append(module)
  assert len(files) > 100
  assert not {name: found for name, found in files.items() if len(found) > 1}


@pytest.mark.parametrize("room", ["fields", "stored", "planning", "paper", "launch"])
def test_planning_loads_no_array_library(room):
  code = f"""import importlib, pkgutil, sys
import moe_parity.{room} as room
for file in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
  if not file.name.endswith("__main__"):
    importlib.import_module(file.name)
print(sorted({{"jax", "numpy", "flax"}} & set(sys.modules)))"""
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"


def test_every_test_of_the_list_of_slow_ones_exists():
  """A renamed test would silently be a fast one."""
  for name in listed():
    file, function = name.split("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text(), name
  assert listed()
