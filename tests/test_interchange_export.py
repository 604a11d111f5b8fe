"""Exports without torch, and what comes back when they are imported; transformers where it is."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity import cli
from moe_parity.config import to_json
from moe_parity.data.tokenizer import Tokenizer, byte_tokenizer, load
from moe_parity.defaults import base
from moe_parity.errors import UserError
from moe_parity.interchange import check, shards
from moe_parity.interchange.export import export_run, read_json, write_tokenizer
from moe_parity.interchange.import_hf import import_folder
from moe_parity.interchange.read_config import read_config
from moe_parity.model.transformer import abstract_model
from moe_parity.training.checkpoint import save_model
from moe_parity.training.load_run import load_run
from tests.helpers import fake_study, small_model

pytest.importorskip("safetensors")
ROPE = {"position": "rope"}
CASES = {  # architecture, options, model_type, whether selection biases are drawn
  "llama": (small_model.dense(num_heads=4, num_kv_heads=2), ROPE, "llama", False),
  "raw": (small_model.moe(), ROPE, "qwen2_moe", False),
  "no_shared": (small_model.moe(d_shared=0, layout="full"), ROPE, "qwen2_moe", False),
  "normalized": (
    small_model.moe(num_layers=4, layout="interleave", num_kv_heads=1),
    ROPE | {"normalize_gates": True},
    "qwen2_moe",
    False,
  ),
  "constants": (
    small_model.dense(num_heads=4),
    ROPE | {"rope_base": 500_000.0, "norm_epsilon": 1e-5},
    "llama",
    False,
  ),
  "ernie": (small_model.moe(d_shared=20), ROPE, "ernie4_5_moe", True),
  "ernie_normalized": (
    small_model.moe(num_layers=4, layout="interleave", d_shared=0, num_heads=4, num_kv_heads=2),
    ROPE | {"normalize_gates": True, "rope_base": 500_000.0, "norm_epsilon": 1e-5},
    "ernie4_5_moe",
    True,
  ),
  "not_ernie": (small_model.moe(layout="MDM", d_shared=20), ROPE, "moe_parity", True),
  "shared_of_14": (
    small_model.moe(),
    ROPE | {"rope_base": 2_000.0, "norm_epsilon": 1e-4},
    "moe_parity",
    True,
  ),
  "alibi_dense": (small_model.dense(), {}, "moe_parity", False),
  "alibi": (small_model.moe(layout="MDM"), {}, "moe_parity", True),
  "learned": (small_model.moe(), {"routed_scale": "learned"}, "moe_parity", False),
  "scaled": (small_model.moe(), ROPE | {"routed_scale": "E/K"}, "moe_parity", False),
  "none": (small_model.moe(d_shared=0), {"position": "none"}, "moe_parity", True),
}


def make_run(folder, architecture, options, has_bias):
  """A run folder with drawn weights, as `train` lays one out."""
  tokenizer = byte_tokenizer()
  architecture = type(architecture)(**architecture.to_dict() | {"vocab_size": tokenizer.vocab_size})
  _, params, buffers = nnx.split(small_model.build(architecture, **options), nnx.Param, ...)
  if not has_bias:
    buffers = jax.tree.map(np.zeros_like, buffers)
  save_model(folder / "checkpoints", 5, params, buffers)
  config = base()
  config.budget.num_params = 123_456
  for name, value in options.items():
    config.model[name] = value
  kind = "moe" if architecture.is_moe else "dense"
  plan = fake_study.arm_plan("drawn", kind, "arm", 0, 0.25, num_steps=5)
  plan |= {"architecture": architecture.to_dict(), "seq_len": 20, "num_params": 123_456}
  (folder / "config.json").write_text(json.dumps(to_json(config)))
  (folder / "plan.json").write_text(json.dumps(plan))
  tokenizer.save(folder / "tokenizer.json")
  return folder


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
  return make_export(request.param, tmp_path_factory.mktemp(request.param))


def make_export(case, folder):
  architecture, options, model_type, has_bias = CASES[case]
  run = make_run(folder / "run", architecture, options, has_bias)
  result = export_run(run, folder / "hf", shard_bytes=4000)
  assert result.model_type == model_type
  return result


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
  folder = tmp_path_factory.mktemp("qwen")
  return export_run(make_run(folder / "run", *CASES["raw"][:2], False), folder / "hf").folder


def test_import_gives_back_the_same_bits(exported, tmp_path):
  architecture = import_folder(exported.folder, tmp_path / "back").architecture
  first, back = exported.model, load_run(tmp_path / "back")
  assert architecture.moe_layers == first.architecture.moe_layers
  for name in ("position", "rope_base", "norm_epsilon", "normalize_gates"):
    if name != "rope_base" or first.options.position == "rope":
      assert getattr(back.options, name) == getattr(first.options, name), name
  for name in ("params", "buffers"):
    one, two = (dict(nnx.to_flat_state(getattr(run, name))) for run in (first, back))
    assert one.keys() == two.keys()
    for path in one:
      np.testing.assert_array_equal(one[path].get_value(), two[path].get_value(), err_msg=str(path))


def test_files_say_what_they_hold(exported):
  names = {path.name for path in exported.folder.iterdir()}
  assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
  assert len(exported.weight_files) > 1 and set(exported.weight_files) <= names
  where = shards.weight_map(exported.folder)
  held = dict(shards.read(exported.folder, where))
  a = exported.model.architecture
  assert held["lm_head.weight"].shape == (a.vocab_size, a.d_model)
  assert held["model.layers.0.self_attn.k_proj.weight"].shape == (
    a.num_kv_heads * a.d_head,
    a.d_model,
  )
  config = read_json(exported.folder, "config.json")
  assert read_config(config).unread_keys == []
  total = json.loads((exported.folder / shards.INDEX).read_text())["metadata"]["total_size"]
  assert total == sum(array.nbytes for array in held.values())
  assert "123,456" in (exported.folder / "README.md").read_text()


def test_an_expert_is_the_slice_that_the_name_says(qwen):
  held = dict(shards.read(qwen, shards.weight_map(qwen)))
  run = load_run(qwen.parent / "run")
  layers = run.params["segments"][1]["layers"][0]["feedforward"]  # layer 0 is dense
  w_in, w_out = layers["experts_in"].get_value(), layers["experts_out"].get_value()
  prefix = "model.layers.2.mlp."
  np.testing.assert_array_equal(held[prefix + "experts.5.gate_proj.weight"], w_in[1, 5, 0])
  np.testing.assert_array_equal(held[prefix + "experts.5.up_proj.weight"], w_in[1, 5, 1])
  np.testing.assert_array_equal(held[prefix + "experts.5.down_proj.weight"], w_out[1, 5].T)
  down = layers["shared"]["down"].get_value()[1].T
  np.testing.assert_array_equal(held[prefix + "shared_expert.down_proj.weight"], 2 * down)
  assert not held[prefix + "shared_expert_gate.weight"].any()


def test_rotary_pairs_of_ernie_lie_next_to_each_other(tmp_path):
  architecture, options, *_ = CASES["ernie"]
  run = make_run(tmp_path / "run", architecture, options, True)
  exported = export_run(run, tmp_path / "hf")
  held = dict(shards.read(exported.folder, shards.weight_map(exported.folder)))
  layer = load_run(run).params["segments"][1]["layers"][0]["attention"]  # layer 0 is dense
  for theirs, ours in (("q", "query"), ("k", "key")):
    rows = held[f"model.layers.2.self_attn.{theirs}_proj.weight"]
    columns = layer[ours].get_value()[1].T
    for head in range(3):
      for pair in range(3):  # d_head 6: ours are (0, 3), (1, 4), (2, 5)
        np.testing.assert_array_equal(rows[6 * head + 2 * pair], columns[6 * head + pair])
        np.testing.assert_array_equal(rows[6 * head + 2 * pair + 1], columns[6 * head + pair + 3])


@pytest.mark.parametrize("case", ["ernie", "ernie_normalized", "constants", "shared_of_14"])
def test_what_was_imported_exports_the_same_files(case, tmp_path):
  architecture, options, model_type, has_bias = CASES[case]
  run = make_run(tmp_path / "run", architecture, options, has_bias)
  first = export_run(run, tmp_path / "hf")
  import_folder(first.folder, tmp_path / "back")
  again = export_run(tmp_path / "back", tmp_path / "again")
  assert again.model_type == first.model_type == model_type
  for name in (shards.SINGLE, "config.json", "generation_config.json", "tokenizer.json"):
    assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes(), name


def test_further_heads_of_an_ernie_are_left_out_and_named(tmp_path, capsys):
  from safetensors.numpy import load_file, save_file

  architecture, options, *_ = CASES["ernie"]
  hf = export_run(make_run(tmp_path / "run", architecture, options, True), tmp_path / "hf").folder
  held = load_file(hf / shards.SINGLE) | {"model.mtp_block.0.w": np.ones(3, np.float32)}
  save_file(held, hf / shards.SINGLE)
  assert cli.main(["import", str(hf), f"--out={tmp_path}/back"]) == 0
  assert "left out, such as model.mtp_block.0.w" in capsys.readouterr().out


def test_the_tokenizer_begins_a_text_as_training_did(qwen):
  import tokenizers

  ids = tokenizers.Tokenizer.from_file(str(qwen / "tokenizer.json")).encode("é").ids
  assert ids == [0, *load(qwen / "tokenizer.json").encode_batch(["é"])[0]]


def test_a_tokenizer_that_only_trims_offsets_begins_texts_too(tmp_path):
  """As GPT-2's: its post-processor adds no token."""
  import tokenizers

  trims = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
  theirs = Tokenizer(byte_tokenizer().description | {"post_processor": trims})
  write_tokenizer(tmp_path, theirs, 20)
  ids = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("é").ids
  assert ids == [0, *theirs.encode_batch(["é"])[0]]


def test_ids_of_the_config_begin_and_end_where_names_say_nothing(qwen, tmp_path, capsys):
  """They stay with the run, and its export names the tokens for others."""
  hf = shutil.copytree(qwen, tmp_path / "hf")
  text = (hf / "tokenizer.json").read_text()
  (hf / "tokenizer.json").write_text(text.replace("<|bos|>", "[B]").replace("<|eos|>", "[E]"))
  (hf / "tokenizer_config.json").write_text("{}")
  assert cli.main(["import", str(hf), f"--out={tmp_path}/back"]) == 0
  back = load(tmp_path / "back" / "tokenizer.json")
  assert (back.bos_id, back.eos_id) == (0, 1) and "document" not in capsys.readouterr().out
  again = export_run(tmp_path / "back", tmp_path / "again").folder
  assert "document_ids" not in read_json(again, "tokenizer.json")
  assert read_json(again, "tokenizer_config.json")["eos_token"] == "[E]"
  assert read_json(again, "config.json")["bos_token_id"] == 0


def test_all_that_ends_a_text_is_exported_again(qwen, tmp_path):
  folder = shutil.copytree(qwen, tmp_path / "hf")
  generation = json.loads((folder / "generation_config.json").read_text())
  ends = sorted([*generation["eos_token_id"], 7])  # a reserved one
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends[::-1]}))
  import_folder(folder, tmp_path / "run")
  again = export_run(tmp_path / "run", tmp_path / "again").folder
  assert json.loads((again / "generation_config.json").read_text())["eos_token_id"] == ends


@pytest.mark.parametrize(
  ("folder", "data", "words"),
  [
    ("nowhere/llama", "builtin", "nowhere/llama is no folder; .* hf download NAME --local-dir=HF"),
    ("run", "builtin", "run is a run folder; evaluate, generate and export take it as it is"),
    ("hf", "nowhere.txt", "--data=nowhere.txt: nowhere.txt does not exist; give text to score"),
    ("hf", "a=u/*.txt,b=nowhere", "nowhere does not exist"),
  ],
)
def test_what_no_import_can_use(qwen, tmp_path, monkeypatch, capsys, folder, data, words):
  monkeypatch.chdir(qwen.parent)
  assert cli.main(["import", folder, f"--out={tmp_path}/run", f"--data={data}"]) == 2
  said = capsys.readouterr().err
  assert re.search(words, said) and said.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["", "."])
def test_a_folder_without_a_name_of_its_own_is_refused(qwen, out, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for make in (export_run, import_folder):
    with pytest.raises(UserError, match="--out=. has no name of its own; give a new folder"):
      make(qwen, pathlib.Path(out))


@pytest.mark.slow
def test_transformers_says_what_we_say(tmp_path):
  if check.PYTHON not in os.environ:
    pytest.skip(f"{check.PYTHON} names no Python with torch and transformers")
  exports = [make_export(case, tmp_path / case) for case in CASES]
  for case, result in zip(CASES, check.check_exports(exports), strict=True):
    assert result["passed"], (case, result)


@pytest.mark.parametrize("printed", [0, 1, 2])
def test_the_export_at_which_transformers_stops_is_named(tmp_path, printed):
  """By a Python that prints so many results and then crashes; with all of them that is no harm."""
  python = tmp_path / "python"
  python.write_text(f"#!/bin/sh\nyes '{{}}' | head -n {printed}\necho NoSuchKey >&2\nexit 1\n")
  python.chmod(0o755)
  pairs = [(tmp_path / name, tmp_path / "reference.npz") for name in ("first", "second")]
  if printed == len(pairs):
    assert check.run_transformers(str(python), pairs) == [{}, {}]
    return
  with pytest.raises(UserError, match=rf"{pairs[printed][0].name}: .*cannot load it \(NoSuchKey\)"):
    check.run_transformers(str(python), pairs)


@pytest.mark.slow
def test_what_transformers_wrote_computes_the_same_here(tmp_path):
  if check.PYTHON not in os.environ:
    pytest.skip(f"{check.PYTHON} names no Python with torch and transformers")
  script = pathlib.Path(__file__).parent / "helpers" / "transformers_models.py"
  subprocess.run([os.environ[check.PYTHON], str(script), str(tmp_path)], check=True)
  for folder in sorted(path for path in tmp_path.iterdir() if path.is_dir()):
    byte_tokenizer().save(folder / "tokenizer.json")
    assert import_folder(folder, tmp_path / "runs" / folder.name).unread_keys == [], folder.name
    run = load_run(tmp_path / "runs" / folder.name)
    graph = abstract_model(run.architecture, run.options)[0]
    model = nnx.merge(graph, run.params, run.buffers)
    with np.load(folder / "reference.npz") as reference:
      expected, tokens = reference["logits_BSV"], reference["tokens_BS"].astype(np.int32)
    hidden = model.final_hidden(jnp.asarray(tokens))[0]
    found = np.asarray(model.logits(hidden)).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=check.TOLERANCE, err_msg=folder.name)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


def damage(folder, how):
  path = folder / "config.json"
  config = json.loads(path.read_text())
  if isinstance(how, dict):
    path.write_text(json.dumps(config | how))
    return
  from safetensors.numpy import load_file, save_file

  held = load_file(folder / shards.SINGLE)
  name = "model.layers.1.self_attn.q_proj.weight"
  if how == "nan":
    held[name][0, 0] = np.nan
  elif how == "shape":
    held[name] = held[name][1:].copy()
  elif how == "missing":
    del held[name]
  elif how == "norm":
    held["model.layers.1.self_attn.q_norm.weight"] = np.ones(6, np.float32)
  elif how == "gate":
    held["model.layers.1.mlp.shared_expert_gate.weight"][0, 0] = 1
  save_file(held, folder / shards.SINGLE)


@pytest.mark.parametrize(
  "how, message",
  [
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' and this project's model only"),
    ({"rms_norm_eps": 0.5}, "rms_norm_eps=0.5, which is above 0.01"),
    ({"model_type": "olmoe"}, "model_type='olmoe' cannot be imported: it normalizes queries"),
    ({"vocab_size": 100}, "the tokenizer has 272 ids and config.json vocab_size=100"),
    ({"num_experts": "7"}, "num_experts='7'; it must be a whole number"),
    ("nan", "tensor model.layers.1.self_attn.q_proj.weight holds numbers that are not finite"),
    ("shape", "q_proj.weight has shape .17, 12. and config.json says .18, 12."),
    ("missing", "lacks tensor model.layers.1.self_attn.q_proj.weight"),
    ("norm", "holds tensor model.layers.1.self_attn.q_norm.weight"),
    ("gate", "shared_expert_gate.weight is not zero"),
  ],
)
def test_what_does_not_fit_is_named(qwen, tmp_path, capsys, how, message):
  shutil.copytree(qwen, tmp_path / "hf")
  damage(tmp_path / "hf", how)
  with pytest.raises(UserError, match=message):
    import_folder(tmp_path / "hf", tmp_path / "run")
  assert cli.main(["import", str(tmp_path / "hf"), f"--out={tmp_path}/run"]) == 2
  assert capsys.readouterr().err.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_missing_shard_is_named(tmp_path):
  run = make_run(tmp_path / "run", *CASES["llama"][:2], False)
  exported = export_run(run, tmp_path / "hf", shard_bytes=4000)
  (exported.folder / exported.weight_files[2]).unlink()
  with pytest.raises(UserError, match=f"lacks {exported.weight_files[2]}, one of "):
    import_folder(exported.folder, tmp_path / "back")


def test_two_heads_of_a_tied_model_are_refused(qwen, tmp_path):
  """Which of them the model was trained with is not known."""
  shutil.copytree(qwen, tmp_path / "hf")
  damage(tmp_path / "hf", {"tie_word_embeddings": True})
  with pytest.raises(UserError, match="tie_word_embeddings=True, and lm_head.weight is not mod"):
    import_folder(tmp_path / "hf", tmp_path / "run")


def test_files_of_two_exports_in_one_folder_are_refused(qwen, tmp_path):
  shutil.copytree(qwen, tmp_path / "hf")
  index = {"weight_map": dict.fromkeys(["model.norm.weight"], "model-00001-of-00002.safetensors")}
  (tmp_path / "hf" / shards.INDEX).write_text(json.dumps(index))
  with pytest.raises(UserError, match="holds model.safetensors and model.safetensors.index.json"):
    shards.weight_map(tmp_path / "hf")


@pytest.mark.parametrize("case, what", [("alibi_dense", "alibi"), ("scaled", "routed_scale='E/K'")])
def test_a_class_that_cannot_hold_it_is_refused(tmp_path, case, what):
  architecture, options, _, has_bias = CASES[case]
  run = make_run(tmp_path / "run", architecture, options, has_bias)
  wanted = "qwen2_moe" if architecture.is_moe else "llama"
  with pytest.raises(UserError, match=f"class='{wanted}' cannot hold .*{what}"):
    export_run(run, tmp_path / "hf", model_type=wanted)
  assert not (tmp_path / "hf").exists()


def test_imported_models_generate_and_are_scored(qwen, tmp_path, capsys):
  run = str(tmp_path / "run")
  assert cli.main(["import", str(qwen), f"--out={run}"]) == 0
  assert f"next: moe-parity evaluate {run} --prepare-data   or" in capsys.readouterr().out
  command = ["--prompt=The ", "--max-tokens=6", "--json"]
  assert cli.main(["generate", run, *command]) == 0
  said = json.loads(capsys.readouterr().out)[0]["tokens"]
  assert cli.main(["generate", str(qwen.parent / "run"), *command]) == 0
  assert said == json.loads(capsys.readouterr().out)[0]["tokens"]
  moved = str((tmp_path / "run").rename(tmp_path / "moved"))
  assert cli.main(["evaluate", moved, "--prepare-data", "--max-tokens=200", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["bpc"] > 0
  again = export_run(tmp_path / "moved", tmp_path / "again")
  for name in (shards.SINGLE, "config.json", "tokenizer.json"):
    assert (again.folder / name).read_bytes() == (qwen / name).read_bytes()
  assert "its training is not known here" in (again.folder / "README.md").read_text()
