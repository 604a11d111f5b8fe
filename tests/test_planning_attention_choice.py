import json

import pytest

from moe_parity.cli import main
from moe_parity.commands.common import ROOT
from moe_parity.errors import UserError
from moe_parity.planning.attention_choice import Device, attention_rows, choose_attention

CPU, TPU = Device("cpu"), Device("tpu")
T4, A100, L4, H100 = (Device("gpu", capability) for capability in (7.5, 8.0, 8.9, 9.0))
AMD = Device("gpu")  # a platform of the same name whose devices have no such capability


def chosen(name, device, dtype="bfloat16", seq_len=2048, d_head=64, position="alibi"):
  return choose_attention(name, device, dtype, seq_len, d_head, position)


@pytest.mark.parametrize(
  "device, sizes, implementation, reason",
  [
    (CPU, {}, "blocks", ""),
    (TPU, {}, "flash", ""),
    (TPU, dict(dtype="float32"), "flash", ""),
    (TPU, dict(seq_len=2000), "blocks", "2,000 positions are no multiple of 128"),
    (TPU, dict(seq_len=16_384), "flash", ""),
    (TPU, dict(seq_len=32_768), "blocks", "longer than 16,384"),
    (T4, {}, "blocks", "capability 8.0 or above"),
    (AMD, {}, "blocks", "NVIDIA"),
    (A100, {}, "cudnn", ""),
    (L4, dict(position="rope", d_head=128), "cudnn", ""),
    (L4, dict(position="none", d_head=128), "cudnn", ""),
    (L4, dict(d_head=124), "cudnn", ""),
    (L4, dict(d_head=125), "blocks", "more than the 128"),
    (A100, dict(d_head=128), "blocks", "take 136, which are more than the 128"),
    (A100, dict(d_head=136, position="rope"), "blocks", "heads of 136 channels are more than"),
    (H100, dict(d_head=128), "cudnn", ""),
    (H100, dict(d_head=252), "cudnn", ""),
    (H100, dict(d_head=256), "blocks", "more than the 256"),
    (H100, dict(dtype="float32"), "blocks", "model.dtype is float32"),
    (H100, dict(seq_len=2001), "blocks", "odd"),
    (H100, dict(seq_len=2000), "cudnn", ""),
    (H100, dict(seq_len=131_072), "blocks", "longer than 65,536"),
    (H100, dict(seq_len=131_072, position="rope"), "cudnn", ""),
    (Device("gpu", 12.0), {}, "cudnn", ""),
  ],
)
def test_a_device_takes_its_own_where_that_can_serve(device, sizes, implementation, reason):
  choice = chosen("", device, **sizes)
  assert choice.implementation == implementation
  assert reason in choice.reason and bool(reason) == bool(choice.reason)


@pytest.mark.parametrize(
  "name, device, sizes",
  [("blocks", device, {}) for device in (CPU, TPU, T4, H100)]
  + [("cudnn", A100, {}), ("flash", TPU, {}), ("splash", TPU, {})]
  + [("splash", TPU, dict(seq_len=32_768)), ("blocks", CPU, dict(seq_len=7, dtype="float32"))]
  + [("splash", TPU, dict(seq_len=131_072, position="none"))],
)
def test_a_named_implementation_is_taken_as_named(name, device, sizes):
  assert chosen(name, device, **sizes).implementation == name


@pytest.mark.parametrize(
  "name, device, sizes, reason",
  [
    ("cudnn", CPU, {}, "cannot run on a CPU: it needs an NVIDIA GPU"),
    ("cudnn", TPU, {}, "NVIDIA"),
    ("cudnn", AMD, {}, "cannot run on a GPU that is not NVIDIA's"),
    ("cudnn", T4, {}, "cannot run on a GPU of capability 7.5"),
    ("cudnn", H100, dict(dtype="float32"), "float32"),
    ("cudnn", H100, dict(seq_len=2001), "odd"),
    ("cudnn", L4, dict(d_head=128), "136"),
    ("flash", H100, {}, "interpreted step by step"),
    ("splash", H100, {}, "interpreted step by step"),
    ("flash", CPU, {}, "interpreted step by step"),
    ("splash", CPU, {}, "interpreted step by step"),
    ("flash", TPU, dict(seq_len=100), "no multiple of 128"),
    ("splash", TPU, dict(seq_len=100), "no multiple of 128"),
    ("flash", TPU, dict(seq_len=32_768), "longer than 16,384"),
    ("splash", TPU, dict(seq_len=131_072), "longer than 65,536"),
  ],
)
def test_a_named_implementation_that_cannot_run_is_refused(name, device, sizes, reason):
  with pytest.raises(UserError, match="use model.attention='', the platform's own") as error:
    chosen(name, device, **sizes)
  assert reason in str(error.value)


def test_a_plan_says_what_every_known_device_takes():
  rows = attention_rows("cudnn", "bfloat16", 2048, 128, "alibi")
  assert {row["device"]: row["attention"] for row in rows} == {
    "CPU": "refused", "TPU": "refused", "T4": "refused", "A100": "refused", "L4": "refused",
    "H100": "cudnn",
  }  # fmt: skip
  rows = attention_rows("", "bfloat16", 2048, 64, "alibi")
  assert [row["attention"] for row in rows] == ["blocks", "flash", "blocks", *["cudnn"] * 3]


def test_the_plan_command_gives_memory_without_stored_scores(capsys):
  main(["plan", f"--config={ROOT}/configs/single_gpu.py", "--json"])
  stored = {
    a["name"]: a["device_memory_bytes"] for a in json.loads(capsys.readouterr().out)["arms"]
  }
  named = ["--config.model.attention=cudnn"]
  main(["plan", f"--config={ROOT}/configs/single_gpu.py", *named, "--json"])
  fused = {a["name"]: a["device_memory_bytes"] for a in json.loads(capsys.readouterr().out)["arms"]}
  main(["plan", f"--config={ROOT}/configs/single_gpu.py"])
  (note,) = [line for line in capsys.readouterr().out.splitlines() if "stores scores" in line]
  assert stored["dense"]["total"] > 2 * fused["dense"]["total"]
  assert all(f"{name} {row['total'] / 2**30:.2f}" in note for name, row in fused.items())
  main(["plan", f"--config={ROOT}/configs/single_gpu.py", *named])
  assert "stores scores" not in capsys.readouterr().out


def test_the_plan_command_says_what_computes_attention(capsys):
  main(["plan", f"--config={ROOT}/configs/paper_2b.py"])
  (note,) = [line for line in capsys.readouterr().out.splitlines() if "attention of heads" in line]
  assert "flash on TPU" in note and "cudnn on H100" in note and "take 136" in note
