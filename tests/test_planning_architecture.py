"""The shape of a model: where MoE layers sit, what its ratios are, what is refused and how."""

import subprocess
import sys

import pytest

from moe_parity.errors import UserError
from moe_parity.paper import tables
from moe_parity.planning.architecture import Architecture

MOE = dict(
  num_layers=5, d_model=48, num_heads=6, d_head=8, layout="1dense", d_ffn=128, num_experts=7,
  experts_per_token=3, d_expert=16, d_shared=24,
)  # fmt: skip


@pytest.mark.parametrize(
  "layout, pattern",
  [
    ("full", "MMMMM"),
    ("interleave", "DMDMD"),
    ("1dense", "DMMMM"),
    ("3dense", "DDDMM"),
    ("0dense", "MMMMM"),
    ("DMMDM", "DMMDM"),
  ],
)
def test_each_layout_says_which_layers_are_moe(layout, pattern):
  architecture = Architecture(**(MOE | {"layout": layout}))
  assert architecture.moe_layers == tuple(letter == "M" for letter in pattern)
  assert architecture.num_moe_layers == pattern.count("M")
  assert architecture.num_dense_layers == pattern.count("D")
  assert architecture.is_moe


def test_a_dense_model_has_no_moe_layer():
  dense = Architecture(num_layers=3, d_model=48, num_heads=6, d_head=8, d_ffn=128)
  assert dense.moe_layers == (False, False, False)
  assert not dense.is_moe and dense.total_ffn_ratio == dense.active_ffn_ratio == 0


def test_ratios_are_the_papers():
  architecture = tables.row("table10", 6).architecture
  assert architecture.ffn_ratio == pytest.approx(2.7727, abs=5e-5)
  assert architecture.aspect_ratio == 88
  assert architecture.total_ffn_ratio == 22.5
  assert architecture.active_ffn_ratio == 3.0
  assert architecture.context_ratio(2048) == pytest.approx(1.4545, abs=5e-5)


def test_key_heads_left_out_are_as_many_as_query_heads():
  assert Architecture(**MOE).num_kv_heads == 6
  assert Architecture(**MOE, num_kv_heads=2).num_kv_heads == 2


def test_a_shape_survives_its_dictionary():
  architecture = Architecture(**MOE, num_kv_heads=2, vocab_size=272)
  assert Architecture.from_dict(architecture.to_dict()) == architecture


@pytest.mark.parametrize(
  "change, words",
  [
    ({"experts_per_token": 8}, ["experts_per_token=8", "num_experts=7", "at most"]),
    ({"num_layers": 0}, ["num_layers=0", "below 1"]),
    ({"d_model": True}, ["d_model=True", "whole number"]),
    ({"d_shared": -8}, ["d_shared=-8", "below 0"]),
    ({"num_kv_heads": 4}, ["num_heads=6", "num_kv_heads=4"]),
    ({"layout": "5dense"}, ["'5dense'", "no MoE layer"]),
    ({"layout": "DMM"}, ["'DMM'", "3 layers", "num_layers=5"]),
    ({"layout": "dense"}, ["num_experts=7", "'dense'"]),
    ({"layout": "sparse"}, ["'sparse'", "interleave"]),
    ({"layout": ""}, ["''", "interleave"]),
    ({"d_ffn": 0}, ["d_ffn=0", "1 dense layer"]),
    ({"num_experts": 0, "experts_per_token": 0}, ["num_experts=0", "4 MoE layer"]),
    ({"d_expert": 0}, ["d_expert=0"]),
  ],
)
def test_an_impossible_shape_is_refused_with_a_way_out(change, words):
  with pytest.raises(UserError) as error:
    Architecture(**(MOE | change))
  for word in words:
    assert word in str(error.value)
  assert "\n" not in str(error.value) and ";" in str(error.value)


def test_a_dictionary_with_a_foreign_or_missing_name_is_refused():
  with pytest.raises(UserError, match="'d_modle' is no field"):
    Architecture.from_dict(MOE | {"d_modle": 48})
  with pytest.raises(UserError, match="d_head is missing"):
    Architecture.from_dict({"num_layers": 2, "d_model": 48, "num_heads": 6})


@pytest.mark.parametrize(
  "change, words",
  [
    ("d_model=48.5", "d_model=48.5 is not a whole number"),
    ("d_model='48'", "d_model='48' is not a whole number"),
    ("layout=1", "layout=1 is not text"),
  ],
)
def test_a_field_of_another_type_is_refused_without_beartype_too(change, words):
  # In a process of its own: the type checker of this test run would speak first.
  code = f"""from moe_parity.planning.architecture import Architecture
try: Architecture(**({MOE!r} | dict({change})))
except ValueError as error: print(error)"""
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert words in result.stdout


def test_planning_imports_no_array_library():
  code = """import importlib, pkgutil, sys
import moe_parity.planning, moe_parity.paper
for room in (moe_parity.planning, moe_parity.paper):
  for file in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
    importlib.import_module(file.name)
print(sorted({"jax", "numpy", "flax"} & set(sys.modules)))"""
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"
