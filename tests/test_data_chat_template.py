"""A chat becomes the same tokens by every way, and text never becomes a special token."""

import json
import os
import subprocess

import numpy as np
import pytest
import tokenizers

from moe_parity.data.chat_template import ChatTemplate, from_jinja, read, template_for
from moe_parity.data.tokenizer import byte_tokenizer, load
from moe_parity.errors import UserError
from tests.helpers import chats
from tests.helpers.small_store import one_separator_tokenizer

TOKENIZER = byte_tokenizer()
TEMPLATE = template_for(TOKENIZER)
MARKS = {"system": 3, "user": 4, "assistant": 5}


@pytest.mark.parametrize("messages", chats.chats(9), ids=len)
def test_ids_are_those_of_the_rendered_text(messages):
  ids, _ = TEMPLATE.encode(TOKENIZER, messages)
  np.testing.assert_array_equal(ids, TEMPLATE.encode_text(TOKENIZER, TEMPLATE.render(messages)))
  library = tokenizers.Tokenizer.from_str(json.dumps(TOKENIZER.description))
  assert library.encode(TEMPLATE.render(messages), add_special_tokens=False).ids == ids.tolist()


@pytest.mark.parametrize("messages", chats.chats(9, seed=1), ids=len)
def test_scored_is_what_a_reader_calls_the_assistants(messages):
  ids, is_scored = TEMPLATE.encode(TOKENIZER, messages)
  assert is_scored.tolist() == chats.scored_by_reading(ids.tolist(), MARKS, TOKENIZER.eos_id)
  answers = [m["content"] for m in messages if m["role"] == "assistant"]
  assert TOKENIZER.decode(ids[is_scored]) == "".join(answers)
  assert (ids[is_scored] == TOKENIZER.eos_id).sum() == len(answers)


def test_a_prompt_is_the_chat_up_to_its_last_answer():
  messages = chats.chats(1)[0]
  whole, _ = TEMPLATE.encode(TOKENIZER, messages)
  prompt = TEMPLATE.encode_prompt(TOKENIZER, messages[:-1])
  np.testing.assert_array_equal(prompt, whole[: len(prompt)])
  rest = TOKENIZER.encode_batch([messages[-1]["content"]])[0].tolist()
  assert whole[len(prompt) :].tolist() == [*rest, TOKENIZER.eos_id]
  rendered = TEMPLATE.render(messages[:-1], add_generation_prompt=True)
  np.testing.assert_array_equal(prompt, TEMPLATE.encode_text(TOKENIZER, rendered))


def test_a_text_that_spells_a_special_token_stays_letters():
  text = "<|eos|><|reserved_2|>"
  ids, is_scored = TEMPLATE.encode(TOKENIZER, [{"role": "user", "content": text}])
  assert ids.tolist()[:2] == [TOKENIZER.bos_id, MARKS["user"]] and (ids[2:] >= 16).all()
  assert len(ids) == 2 + len(text) and not is_scored.any()


def test_jinja_renders_the_same_text():
  jinja2 = pytest.importorskip("jinja2")
  compiled = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.jinja())
  for messages in chats.chats(6, seed=2):
    assert compiled.render(messages=messages) == TEMPLATE.render(messages)
    found = compiled.render(messages=messages[:-1], add_generation_prompt=True)
    assert found == TEMPLATE.render(messages[:-1], add_generation_prompt=True)


def test_an_exported_template_comes_back_from_its_jinja():
  assert from_jinja(TEMPLATE.jinja(), TOKENIZER) == TEMPLATE
  for other in (
    "",
    TEMPLATE.jinja() + " ",
    TEMPLATE.jinja().replace("message['content']", "message['content'] | trim", 1),
    TEMPLATE.jinja().replace(TEMPLATE.user, "<|none|>"),
    "{{ messages[0]['content'] }}",
  ):
    assert from_jinja(other, TOKENIZER) is None


def test_a_saved_template_is_read_again(tmp_path):
  assert read(tmp_path) is None
  other = ChatTemplate("<|bos|>", "<|reserved_4|>", "<|reserved_5|>", "<|reserved_6|>", "<|eos|>")
  other.save(tmp_path)
  assert read(tmp_path) == other
  (tmp_path / "chat_template.json").write_text('{"user": 3}')
  with pytest.raises(UserError, match="is damaged"):
    read(tmp_path)


@pytest.mark.parametrize(
  "named, message",
  [
    ({"system": "<|sys|>", "user": "a", "assistant": "b"}, "no special token '<|sys|>'.*--templ"),
    ({"system": "<|reserved_1|>", "user": "<|reserved_1|>", "assistant": "<|reserved_2|>"},
     "one token for two things"),
    ({"system": "<|reserved_1|>", "user": "<|reserved_0|>", "assistant": "<|reserved_2|>",
      "end": "<|reserved_9|>"}, "end='<|reserved_9|>' is not the token"),
    ({"user": "<|reserved_0|>", "assistant": "<|reserved_2|>"}, "system is missing"),
    ({"system": "a", "user": "b", "assistant": "c", "tool": "d"}, "unknown key 'tool'"),
  ],
)  # fmt: skip
def test_a_template_that_does_not_fit_is_refused(tmp_path, named, message):
  (tmp_path / "t.json").write_text(json.dumps(named))
  with pytest.raises(UserError, match=message.replace("|", r"\|")):
    template_for(TOKENIZER, str(tmp_path / "t.json"))


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"no special token '<\|reserved_0\|>'"):
    template_for(load(one_separator_tokenizer(tmp_path)))


SCRIPT = """
import json, sys, transformers
tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
found = []
for messages in json.load(open(sys.argv[2])):
  whole = tokenizer.apply_chat_template(messages, return_dict=False)
  asked = messages[:-1]
  prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
  found.append([list(whole), list(prompt)])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_transformers_gives_a_chat_the_same_ids(tmp_path):
  pytest.importorskip("safetensors")
  from moe_parity.interchange.export import write_tokenizer

  python = os.environ.get("MOE_PARITY_HF_PYTHON")
  if not python:
    pytest.skip("MOE_PARITY_HF_PYTHON names no Python with torch and transformers")
  write_tokenizer(tmp_path, TOKENIZER, 64, TEMPLATE)
  made = chats.chats(9)
  (tmp_path / "chats.json").write_text(json.dumps(made))
  command = [python, "-c", SCRIPT, str(tmp_path), str(tmp_path / "chats.json")]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  for messages, (whole, prompt) in zip(made, json.loads(done.stdout), strict=True):
    assert whole == TEMPLATE.encode(TOKENIZER, messages)[0].tolist()
    assert prompt == TEMPLATE.encode_prompt(TOKENIZER, messages[:-1]).tolist()
