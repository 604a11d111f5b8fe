"""config.json of other people's models: what it becomes here, and which key does not fit."""

import itertools
import json

import pytest

from moe_parity import cli
from moe_parity.errors import UserError
from moe_parity.interchange import config_keys
from moe_parity.interchange.hf_config import CLASSES, ernie_layers
from moe_parity.interchange.read_config import MODEL_TYPES, read_config
from moe_parity.planning.architecture import Architecture

LLAMA = {
  "model_type": "llama", "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3,
  "intermediate_size": 20, "vocab_size": 37, "max_position_embeddings": 64, "head_dim": 6,
  "rope_theta": 500_000, "rms_norm_eps": 1e-5,
}  # fmt: skip
# As the class writes one, of another size than the published models.
ERNIE = {
  "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "hidden_size": 16,
  "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
  "intermediate_size": 40, "vocab_size": 37, "max_position_embeddings": 64, "hidden_act": "silu",
  "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "use_bias": False, "tie_word_embeddings": True,
  "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 10, "moe_num_shared_experts": 2,
  "moe_layer_start_index": 1, "moe_layer_end_index": 5, "moe_layer_interval": 1,
  "moe_use_aux_free": True, "num_nextn_predict_layers": 1, "transformers_version": "5",
}  # fmt: skip
# A layout of nobody's, with the names of several.
FOREIGN = {
  "model_type": "ours_v2", "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3,
  "num_attention_groups": 3, "ffn_hidden_size": 20, "vocab_size": 37, "max_seq_len": 64,
  "norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": False, "logit_soft_cap": 30.0,
}  # fmt: skip


def test_base_and_epsilon_of_a_llama_are_taken_over():
  read = read_config(LLAMA)
  assert read.model["rope_base"] == 5e5 and read.model["norm_epsilon"] == 1e-5
  newer = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
  newer |= {"rope_parameters": {"rope_type": "default", "rope_theta": 2e6}}
  assert read_config(newer).model["rope_base"] == 2e6


@pytest.mark.parametrize(
  "model_type, base, epsilon",
  [("llama", 1e4, 1e-6), ("mixtral", 1e6, 1e-5), ("ernie4_5_moe", 5e5, 1e-5)],
)
def test_a_key_that_is_missing_has_the_value_of_its_class(model_type, base, epsilon):
  config = {**ERNIE, "num_local_experts": 8, "num_experts_per_tok": 2, "model_type": model_type}
  del config["rope_theta"], config["rms_norm_eps"]
  model = read_config(config).model
  assert (model["rope_base"], model["norm_epsilon"]) == (base, epsilon)


def test_an_ernie_config_is_a_shape_of_ours():
  read = read_config(ERNIE)
  shape = Architecture(**read.shape)
  assert (shape.layout, shape.num_kv_heads, shape.d_head) == ("DMMMMM", 2, 4)
  assert (shape.num_experts, shape.experts_per_token) == (8, 3)
  assert (shape.d_expert, shape.d_shared, shape.d_ffn) == (10, 20, 40)
  assert read.model["normalize_gates"] and read.is_tied and read.unread_keys == []
  assert not read_config({**ERNIE, "moe_norm_min": 1.0}).model["normalize_gates"]
  last = read_config({**ERNIE, "moe_layer_end_index": -1, "moe_layer_interval": 2})
  assert last.shape["layout"] == "DMDMDM"


def test_ernie_holds_every_nth_layer_of_a_range_and_no_other():
  for is_moe in itertools.product((False, True), repeat=5):
    if not any(is_moe):
      continue
    layers = [i for i, routes in enumerate(is_moe) if routes]
    steps = {later - earlier for earlier, later in itertools.pairwise(layers)} or {1}
    fits = len(steps) == 1 and all((i + 1) % min(steps) == 0 for i in layers)
    assert (ernie_layers(is_moe) is not None) == fits, is_moe


@pytest.mark.parametrize(
  "change, words",
  [
    ({"moe_norm_min": 0.5}, "moe_norm_min=0.5 and this project's model only 1e-12"),
    ({"use_bias": True}, "use_bias=True and this project's model only False"),
    ({"moe_layer_interval": 0}, "moe_layer_interval=0; it must be a whole number of at least 1"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5', which is not a number; model.norm_epsilon"),
    ({"rope_theta": 0.5}, "rope_theta=0.5, which is below 1; model.rope_base takes a number"),
    ({"layer_types": ["sliding_attention"]}, "layer_types="),
  ],
)
def test_a_value_that_does_not_fit_is_named_with_its_key(change, words):
  with pytest.raises(UserError, match=words):
    read_config(ERNIE | change)


QWEN = LLAMA | {
  "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
}  # fmt: skip
OWN = QWEN | {"model_type": "moe_parity", "moe_layers": [1]}
MIXTRAL = LLAMA | {
  "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
  "num_key_value_heads": 3,
}  # fmt: skip
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}  # as users add it to a config.json


@pytest.mark.parametrize(
  "config, change, words",
  [
    (QWEN, {"decoder_sparse_step": 0}, "decoder_sparse_step=0; it must be a whole number"),
    (QWEN, {"mlp_only_layers": 1}, "mlp_only_layers is a number, not a list"),
    (QWEN, {"norm_topk_prob": "false"}, "norm_topk_prob"),
    (QWEN, {"shared_expert_intermediate_size": "8"}, "shared_expert_intermediate_size='8'; it"),
    (OWN, {"moe_layers": 3}, "moe_layers is a number, not a list"),
    (OWN, {"moe_layers": ["1"]}, "moe_layers"),
    (LLAMA, {"head_dim": 4.5}, "head_dim=4.5; it must be a whole number"),
    (LLAMA, {"num_key_value_heads": "3"}, "num_key_value_heads='3'; it must be a whole number"),
    (LLAMA, {"rope_scaling": "linear"}, "rope_scaling"),
    (LLAMA, {"rope_parameters": [1]}, "rope_parameters"),
    (LLAMA, {"layer_types": [{}]}, "layer_types"),
    (LLAMA, {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "by kind of layer="),
    (LLAMA, YARN | {"rope_parameters": {"rope_type": "default"}}, "rope_type='yarn' and"),
    (LLAMA, {"rope_scaling": {"factor": 4.0}}, "further keys for rotary positions=.'factor': 4.0"),
    (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 and"),
    (MIXTRAL, {"sliding_window": 32, "use_sliding_window": False}, "sliding_window=32 and"),
  ],
)
def test_a_value_of_another_kind_is_named_with_its_key(config, change, words):
  with pytest.raises(UserError, match=words):
    read_config(config | change)


def test_a_key_that_no_model_of_the_class_reads_is_listed():
  assert read_config({**LLAMA, "qk_scale": 2.0, "_name_or_path": "x"}).unread_keys == ["qk_scale"]


def test_an_unknown_layout_is_told_key_by_key():
  with pytest.raises(UserError) as error:
    read_config(FOREIGN)
  text = str(error.value)
  assert text.count("\n") == 0 and "model_type='ours_v2' cannot be imported" in text
  assert "num_kv_heads (num_attention_groups)" in text and "seq_len (max_seq_len)" in text
  assert "without a counterpart: logit_soft_cap. If it computes" in text


def test_another_layout_is_read_as_the_class_that_the_user_names():
  with pytest.raises(UserError, match="logit_soft_cap=30.0, which no llama model has"):
    read_config(FOREIGN, "llama")
  read = read_config(FOREIGN, "llama", ["logit_soft_cap"])
  assert read.model_type == "llama" and read.seq_len == 64
  assert read.shape == {
    "num_layers": 3, "d_model": 12, "num_heads": 3, "num_kv_heads": 3, "d_head": 4,
    "vocab_size": 37, "d_ffn": 20,
  }  # fmt: skip


@pytest.mark.parametrize(
  "config, as_class, ignored, words",
  [
    (FOREIGN, "lama", [], "--as='lama' is not one of llama.*llama"),
    (FOREIGN, "llama", ["logit_softcap"], "does not have; did you mean 'logit_soft_cap'"),
    (LLAMA, "", ["rope_theta"], "--ignore-keys=rope_theta is for a config of another layout"),
    ({**FOREIGN, "dim": 14}, "llama", ["logit_soft_cap"], "dim=14 and hidden_size=12, which mean"),
    ({**FOREIGN, "moe_num_experts": 8}, "llama", [], "moe_num_experts=8"),
    ({**FOREIGN, "moe_num_experts": 8}, "moe_parity", ["logit_soft_cap"], "and no moe_layers"),
    ({**FOREIGN, "model_type": "step1moe"}, "moe_parity", [], "the square root of the distance"),
  ],
)
def test_what_cannot_be_read_as_a_class_is_refused(config, as_class, ignored, words):
  with pytest.raises(UserError, match=words):
    read_config(config, as_class, ignored)


MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 32}


def test_a_window_of_another_layout_is_not_ignored():
  """Llama's class has none; Mistral's, read as Llama's, reads 32 of its 64 positions back."""
  with pytest.raises(UserError, match="sliding_window=32 and this project's model only None"):
    read_config(MISTRAL, "llama")
  for change in ({"sliding_window": None}, {"sliding_window": 64}, {"use_sliding_window": False}):
    assert read_config(MISTRAL | change, "llama").seq_len == 64  # attends to all positions


def test_the_command_takes_class_and_keys(tmp_path, capsys):
  (tmp_path / "config.json").write_text(json.dumps(FOREIGN))
  command = ["import", str(tmp_path), f"--out={tmp_path}/run", "--as=llama"]
  assert cli.main(command) == 2
  assert "--ignore-keys=logit_soft_cap" in capsys.readouterr().err
  assert cli.main([*command, "--ignore-keys=logit_soft_cap"]) == 2  # read; no tokenizer there
  assert "has no tokenizer.json" in capsys.readouterr().err


def test_every_class_reads_the_keys_that_its_export_writes():
  assert set(config_keys.READ) == set(config_keys.DEFAULTS) == set(MODEL_TYPES)
  assert set(CLASSES) < set(MODEL_TYPES)
  assert not config_keys.INERT & set().union(*config_keys.READ.values())
