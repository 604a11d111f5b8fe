"""What README and docs show is what files say, and what they tell people to type is there."""

import json
import pathlib
import re
import shlex

import pytest

from moe_parity import cli, defaults
from moe_parity import config as configs
from moe_parity.api.plans import planned
from moe_parity.commands import compile as compile_
from moe_parity.commands import plan, study, train
from moe_parity.commands.common import load_config
from moe_parity.planning.gpu_cards import is_card
from moe_parity.planning.scaling_laws import StepLaw
from moe_parity.planning.tpu_slices import parse_slice
from tests.helpers import scripts

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch" / "README.md",
          *sorted((ROOT / "docs").glob("*.md")),
          *sorted((ROOT / "docs" / "results").glob("*.md"))]  # fmt: skip
LOG = sorted((ROOT / "docs" / "log").glob("*.md"))  # records: their commands are of their day
# What a tree holds; a path below one of these is a promise.
ONE_ARM = ("train ", "compile ")  # what these commands take
TOP = "configs|launch|results|moe_parity|tests|docs|notebooks"


@pytest.fixture(scope="module")
def quote():
  return scripts.load("docs/quote.py")


def name_of(path):
  return str(path.relative_to(ROOT))


def test_every_number_block_is_what_the_files_say(quote):
  shown = [name for path in quote.pages() for name in re.findall(r"<!-- /(\w+)", path.read_text())]
  assert set(shown) == set(quote.BLOCKS)
  for path in quote.pages():
    assert quote.quoted(path.read_text()) == path.read_text(), f"run docs/quote.py: {path}"


def test_the_limits_are_those_of_the_largest_model():
  found = README.partition("<!-- findings -->")[2].partition("<!-- /findings -->")[0]
  sizes = [int(n.replace(",", "")) for n in re.findall(r"^\| ([\d,]+)", found, flags=re.M)]
  factor = int(re.search(r"at least (\d+) times smaller", found)[1])
  assert factor == round(StepLaw.fitted_on["num_params"][0] / max(sizes))


def test_what_n_leaves_out_is_counted_from_the_shapes(quote):
  """Router E d and two norms a layer and one at the end, by hand, of the cell with the most."""

  def beyond(arm):
    a = arm["architecture"]
    routers = a["num_experts"] * (arm["kind"] == "moe") * a["d_model"]  # one layer, an MoE one
    return arm["num_params"] + routers + (2 * a["num_layers"] + 1) * a["d_model"]

  plan = json.loads((ROOT / "results/depth/n100_b2/plan.json").read_text())
  arms = {arm["name"]: arm for arm in plan["arms"]}
  assert all(arms[name]["architecture"]["num_layers"] == 1 for name in ("dense", "moe_15"))
  counted = quote.quote_depth._beyond_n("depth/n100_b2")["moe_15"]
  assert counted == beyond(arms["moe_15"]) / beyond(arms["dense"])
  assert f"to {counted:.3f} times the non-vocabulary parameters of dense" in README


def test_a_number_typed_into_a_block_is_noticed(quote):
  text = re.sub(r"(\| dense \|.*)\d", r"\g<1>x", README)
  assert text != README and quote.quoted(text) == README


def test_figures_of_the_docs_are_those_of_results(quote):
  copies = {quote.copy_of(name) for name in quote.FIGURES}
  assert copies == set((ROOT / "docs" / "figures").glob("*.png"))
  for name in quote.FIGURES:
    assert quote.copy_of(name).read_bytes() == (ROOT / "results" / name).read_bytes(), name


def anchors(path):
  """Fragments that a page offers: its headings as GitHub and mkdocs spell them."""
  titles = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
  return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*GUIDES, *LOG], ids=name_of)
def test_rows_of_a_table_have_as_many_cells_as_its_head(path):
  width = 0
  for line in path.read_text().splitlines():
    pipes = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) if line.startswith("|") else 0
    width = (width or pipes) if pipes else 0  # of two backslashes the second escapes no pipe
    assert pipes == width, f"{path}: {line}"


@pytest.mark.parametrize("path", [*GUIDES, ROOT / "CHANGELOG.md", *LOG], ids=name_of)
def test_links_and_pictures_of_a_page_exist(path):
  for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
    if link.startswith(("https://", "http://", "mailto:")):
      continue
    name, _, fragment = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    assert target.exists(), f"{link} in {path}"
    if path.is_relative_to(ROOT / "docs"):  # the site has nothing else
      assert target.is_relative_to(ROOT / "docs"), f"{link} in {path}: name the file instead"
    assert not fragment or fragment in anchors(target), f"{link} in {path}"


@pytest.mark.parametrize("path", [*GUIDES, *LOG], ids=name_of)
def test_paths_named_on_a_page_exist(path):
  # Links and commands are checked elsewhere.
  prose = re.sub(r"\]\([^)]*\)|^    .*$", "", path.read_text(), flags=re.M)
  for name in re.findall(rf"(?<![\w/.])(?:{TOP})/[\w/.*{{}}-]*[\w/}}]", prose):
    found = ROOT.glob(name) if "*" in name else [ROOT / name]
    assert any(p.exists() for p in found), f"{name} in {path}"


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_names_said_to_be_in_a_file_are_there(path):
  """Where a page says "`name` in `moe_parity/file.py`"."""
  pattern = r"`(\w+)(?:\(\))?`(?:, `\w+`)* in\s+`((?:moe_parity|configs|tests|docs)/[\w/]+\.py)`"
  for name, file in re.findall(pattern, path.read_text()):
    source = (ROOT / file).read_text()
    assert re.search(rf"^ *(def |class )?{name}\b(\(|:| =|,| *\|)", source, re.M), (name, file)


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_config_fields_named_on_a_page_exist(path):
  config, arm = defaults.base(), defaults.dense_arm()
  sections = "budget|study|data|model|mesh|optimizer|train|evaluation"
  for section, field in re.findall(rf"`(?:config\.)?({sections})\.(\w+)", path.read_text()):
    assert field in (*config[section], "json"), f"{section}.{field} in {path}"
  for field in re.findall(r"`(?:config\.)?arms\.\w+\.(\w+)", path.read_text()):
    assert field in arm, f"arms.*.{field} in {path}"


def test_the_readme_fits_three_screens_and_lists_every_command():
  assert len(README.splitlines()) <= 130
  cells = re.findall(r"^\| (`[^|]*)", README, flags=re.M)
  listed = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
  assert set(cli.COMMANDS) - listed == set(), "a command without its line in the README"


def shown_commands():
  """Every command that docs, help, configs and launchers tell people to type."""
  command_name = rf"(?:{'|'.join(cli.COMMANDS)})(?![\w.-])"
  files = [*GUIDES, *(ROOT / "configs").glob("*.py"), *(ROOT / "launch").glob("*.sh")]
  abouts = [cli.ABOUT, plan.ABOUT, train.ABOUT, study.ABOUT, compile_.ABOUT]
  text = "\n".join([*abouts, *(path.read_text() for path in files)])
  found = set()
  for line in re.sub(r" *\\\n[ #]*", " ", text).splitlines():  # a command may go over two lines
    typed = re.findall(rf"(?:moe-parity|launch/\w+\.sh) +({command_name}[^`#\"]*)", line)
    if line.startswith("| `"):
      typed += re.findall(rf"`({command_name}[^`]*)`", line)
    for command in typed:
      command = re.sub(r" +-", " -", command.rstrip("\\"))  # `plan  --config=` is one command
      found.add(re.split(r" {2,}| &&", command)[0].strip())
  return sorted(command for command in found if not re.search(r"\.\.\.|--help", command))


def shown_configs():
  """File name -> text of the configs that pages show; the docstring begins with the name."""
  text = "\n".join(path.read_text() for path in GUIDES)
  return dict(re.findall(r'```python\n(?="""(\w+\.py): )(.*?)```', text, flags=re.DOTALL))


@pytest.mark.parametrize("command", shown_commands())
def test_a_command_that_is_shown_is_one_that_is_taken(command, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  args, overrides = cli._parser().parse_known_args(shlex.split(command))
  if "config" in args and args.config is not None:
    name, colon, arg = args.config.partition(":")
    if name in shown_configs():
      name = tmp_path / name
      name.write_text(shown_configs()[name.name])
    configs.load(f"{name}{colon}{arg}", overrides)
  else:
    assert not overrides or args.subcommand == "test"


@pytest.mark.parametrize("command", [c for c in shown_commands() if c.startswith(ONE_ARM)])
def test_a_shown_command_for_one_arm_finds_one_and_a_mesh(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  args, args.overrides = cli._parser().parse_known_args(shlex.split(command))
  if not pathlib.Path(args.config.partition(":")[0]).exists():
    pytest.skip("a config that a reader writes")
  config = load_config(args)
  arms = planned(config).arms
  if args.subcommand == "train":
    train.select_run(arms, args.arm, args.seed)
    return
  arm = compile_.select_arm(arms, args.arm)
  if not is_card(args.topology):
    assert compile_.choose_meshes(args, config, arm, parse_slice(args.topology))


@pytest.mark.parametrize("line", re.findall(r"launch/local\.sh (plan --config.*)", README))
def test_plan_commands_of_the_readme_run(line, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert cli.main(line.split("#")[0].split()) == 0


@pytest.mark.parametrize("name", ["mine.py", "fine.py"])
def test_a_config_that_is_shown_plans_arms_at_parity(name, tmp_path, capsys):
  (tmp_path / name).write_text(shown_configs()[name])
  assert cli.main(["plan", f"--config={tmp_path / name}", "--json"]) == 0
  assert {arm["name"][:3] for arm in json.loads(capsys.readouterr().out)["arms"]} == {"den", "moe"}
