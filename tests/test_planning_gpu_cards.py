"""Cards by name, and which topologies are cards."""

import pytest

from moe_parity.errors import UserError
from moe_parity.planning.attention_choice import choose_attention
from moe_parity.planning.gpu_cards import CARDS, is_card, parse_host
from moe_parity.startup import GPU_MEMORY_FRACTION


def test_a_name_is_a_card_or_several_of_one_host():
  assert parse_host("l4").num_devices == 1
  host = parse_host("H100-8")
  assert (host.card.name, host.num_devices, host.name) == ("h100", 8, "h100-8")
  assert parse_host("a100_40gb").card.memory_bytes < parse_host("a100").card.memory_bytes / 2


@pytest.mark.parametrize(
  "name, words",
  [("a10", "use a100"), ("h1000", "use h100"), ("h100-9", "1 to 8 cards"), ("l4-0", "1 to 8")],
)
def test_another_name_is_refused_with_the_nearest(name, words):
  with pytest.raises(UserError, match=words):
    parse_host(name)


def test_tpu_slices_are_no_cards():
  names = ["v4-8", "v5e-64", "v5p:4x4x4", "v6e-256", "tpu7x-8", "ironwood-8", "v5litepod-4"]
  assert not any(map(is_card, names))
  assert all(map(is_card, [*CARDS, "h100-8", "t4-2"]))


def test_a_program_may_use_what_jax_takes_at_its_start():
  card = CARDS["h100"]
  assert card.usable_bytes == int(float(GPU_MEMORY_FRACTION) * card.memory_bytes)


def test_a_dtype_without_units_is_refused():
  with pytest.raises(UserError, match="Tesla T4 has no units for it; use --config.model.dtype"):
    CARDS["t4"].peak("bfloat16")
  assert 0 < CARDS["t4"].peak("float32") < CARDS["l4"].peak("bfloat16")


@pytest.mark.parametrize("name", ["h100", "h200", "a100", "a100_40gb", "l4"])
def test_float32_products_take_half_the_bfloat16_peak(name):
  """JAX's default precision on these cards is TF32, which has half the rate."""
  assert CARDS[name].peak("float32") == CARDS[name].peak("bfloat16") / 2


@pytest.mark.parametrize(
  "name, d_head, expected",
  [("h100", 128, "cudnn"), ("a100", 128, "blocks"), ("l4", 64, "cudnn"), ("t4", 64, "blocks")],
)
def test_a_card_decides_attention(name, d_head, expected):
  choice = choose_attention("", CARDS[name].device, "bfloat16", 2048, d_head, "alibi")
  assert choice.implementation == expected
