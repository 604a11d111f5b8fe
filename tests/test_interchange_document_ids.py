"""What begins and ends a document of a Hugging Face model, from files that say it in many ways."""

import json

import pytest

from moe_parity.data import tokenizer as tokenizers
from moe_parity.errors import UserError
from moe_parity.interchange.document_ids import open_tokenizer
from tests.helpers import sentencepiece_like

KNOWN = ("<unk>", "<s>", "</s>")
UNKNOWN = ("[U]", "[B]", "[E]")  # no usual names


BEGINS = {  # a text with the token of id 1, as Llama's does
  "type": "Sequence",
  "processors": [
    {
      "type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "B", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
      "special_tokens": {"B": {"id": "B", "ids": [1], "tokens": ["B"]}},
    }
  ],
}  # fmt: skip


def found(folder, specials, processor=BEGINS, **contents):
  """(begins, ends, notes) of a folder with these files."""
  description = sentencepiece_like.description(specials=specials)
  contents["tokenizer"] = description | {"post_processor": processor}
  for name, value in contents.items():
    (folder / f"{name}.json").write_text(json.dumps(value))
  made, notes = open_tokenizer(folder)
  return made.bos_id, made.eos_id, notes


@pytest.mark.parametrize(
  ("contents", "ids"),
  [
    ({"config": {"bos_token_id": 1, "eos_token_id": 2}}, (1, 2)),
    ({"config": {}, "generation_config": {"bos_token_id": 1, "eos_token_id": [2]}}, (1, 2)),
    ({"tokenizer_config": {"bos_token": "[B]", "eos_token": {"content": "[E]"}}}, (1, 2)),
    ({"special_tokens_map": {"eos_token": "[E]"}, "config": {"bos_token_id": 1}}, (1, 2)),
  ],
)
def test_ids_are_taken_from_where_they_are_stated(tmp_path, contents, ids):
  assert found(tmp_path, UNKNOWN, **contents) == (*ids, [])


def test_what_the_tokenizer_says_comes_before_the_config(tmp_path):
  *ids, notes = found(tmp_path, KNOWN, config={"bos_token_id": 1, "eos_token_id": 0})
  assert ids == [1, 2]
  assert notes == [
    "config.json has eos_token_id=0; the tokenizer's files say that '</s>' (2) ends a document, and"
    " that is used"
  ]
  # An instruct model ends its turns with another token than its names would say.
  ended = found(tmp_path, KNOWN, tokenizer_config={"eos_token": "<unk>"})
  assert ended == (1, 0, [])


def test_all_that_ends_a_generated_text_is_taken(tmp_path):
  """Instruct models list the end of a turn and the end of a document; neither moves the other."""
  config = {"bos_token_id": 1, "eos_token_id": 2}
  found(tmp_path, KNOWN, config=config, generation_config={"eos_token_id": [2, 0, 9, 1]})
  made, notes = open_tokenizer(tmp_path)
  said = "generation_config.json has 9 in eos_token_id=[2, 0, 9, 1], no special token: ends no text"
  assert notes == [said]
  assert made.eos_id == 2 and made.end_ids == {0, 1, 2}
  made.save(tmp_path / "saved.json")
  back = tokenizers.load(tmp_path / "saved.json")
  assert back.end_ids == {0, 1, 2} and tokenizers.ALSO_END not in tokenizers.standard(
    back.description
  )
  # A store that was made with the tokenizer itself stays one of this model's.
  found(tmp_path, KNOWN, config=config, generation_config={})
  alone = open_tokenizer(tmp_path).tokenizer
  assert alone.end_ids == {1, 2} and alone.fingerprint == back.fingerprint
  # One that the tokenizer does not take for the end of a document ends texts all the same.
  found(tmp_path, KNOWN, config=config, generation_config={"eos_token_id": 0})
  assert open_tokenizer(tmp_path).tokenizer.end_ids == {0, 1, 2}


def test_the_ids_travel_in_the_file_and_no_further(tmp_path):
  """Our loader has them again, and the library that encodes never sees them."""
  found(tmp_path, UNKNOWN, config={"bos_token_id": 1, "eos_token_id": 2})
  made = open_tokenizer(tmp_path).tokenizer
  made.save(tmp_path / "saved.json")
  back = tokenizers.load(tmp_path / "saved.json")
  assert (back.bos_id, back.eos_id) == (1, 2) and back.fingerprint == made.fingerprint
  assert back.decode(back.encode_batch(["the cat"])[0]) == "the cat"
  assert tokenizers.DOCUMENT_IDS not in tokenizers.standard(back.description)
  plain = found(tmp_path, KNOWN, config={"bos_token_id": 1, "eos_token_id": 2})
  assert plain == (1, 2, [])
  assert tokenizers.DOCUMENT_IDS not in open_tokenizer(tmp_path).tokenizer.description


@pytest.mark.parametrize(
  ("contents", "words"),
  [
    ({"config": {}}, 'eos_token_id name a special token that ends a document; give tokenizer_con'),
    ({"config": {"eos_token_id": 7}}, "name a special token that ends"),  # a byte
    ({"config": {"eos_token_id": 5000}}, "has eos_token_id=5000, and tokenizer.json has ids 0 to"),
    ({"config": {"eos_token_id": "2"}}, "has eos_token_id='2'; it must be an id, or a list"),
    ({"config": {"eos_token_id": -1}}, "has eos_token_id=-1; it must be an id, or a list of ids"),
  ],
)  # fmt: skip
def test_ids_that_cannot_be_are_refused(tmp_path, contents, words):
  with pytest.raises(UserError, match=words):
    found(tmp_path, UNKNOWN, **contents)


def test_tokens_and_ids_that_are_not_used_are_said(tmp_path):
  contents = {"tokenizer_config": {"bos_token": "[X]", "eos_token": "[E]"},
              "config": {"bos_token_id": 7}}  # fmt: skip
  bos, eos, notes = found(tmp_path, UNKNOWN, **contents)
  assert (bos, eos) == (2, 2)
  assert notes[:2] == [
    "tokenizer_config.json has bos_token='[X]', which tokenizer.json does not: not used",
    "config.json has bos_token_id=7, which is '<0x04>' in tokenizer.json, no special token: not"
    " used",
  ]
  assert len(notes) == 3 and "Here '[E]' (2) stands before" in notes[2]


NAMED = {"bos_token": "[B]", "eos_token": "[E]"}
QWEN2 = {"bos_token": None, "eos_token": "[E]", "tokenizer_class": "Qwen2Tokenizer"}
NO_PROCESSOR = "no post_processor in tokenizer.json adds a token"
BEGUN = "transformers puts none before a text. Here {} stands before every text"


@pytest.mark.parametrize(
  ("contents", "why", "begin"),
  [
    ({"config": {"eos_token_id": [2, 0]}}, "no file names a token that begins", "'[E]' (2)"),
    ({"tokenizer_config": QWEN2, "config": {"bos_token_id": 0}}, NO_PROCESSOR, "'[U]' (0)"),
    ({"tokenizer_config": NAMED}, NO_PROCESSOR, "'[B]' (1)"),
    (
      {"tokenizer_config": NAMED | {"add_bos_token": False}},
      "tokenizer_config.json has add_bos_token=false",
      "'[B]' (1)",
    ),
  ],
)
def test_a_text_that_begins_with_nothing_in_transformers_is_said(tmp_path, contents, why, begin):
  processor = None if why == NO_PROCESSOR else BEGINS
  bos, _, (note,) = found(tmp_path, UNKNOWN, processor, **contents)
  assert note.startswith(why) and BEGUN.format(begin) in note and f"({bos})" in begin


@pytest.mark.parametrize("processor", [None, {"type": "ByteLevel"}])
def test_add_bos_token_needs_no_post_processor(tmp_path, processor):
  config = NAMED | {"add_bos_token": True}
  assert found(tmp_path, UNKNOWN, processor, tokenizer_config=config) == (1, 2, [])


def test_a_file_with_ids_that_it_lacks_is_refused(tmp_path):
  description = sentencepiece_like.description() | {tokenizers.DOCUMENT_IDS: {"bos": 1, "eos": 900}}
  (tmp_path / "t.json").write_text(json.dumps(description))
  with pytest.raises(UserError, match="document_ids=.* and ids under 2[0-9]*; import the model ag"):
    tokenizers.load(tmp_path / "t.json")
  (tmp_path / "t.json").write_text(
    json.dumps(sentencepiece_like.description() | {tokenizers.ALSO_END: [900]})
  )
  with pytest.raises(UserError, match=r"also_end=\[900\] and ids under 2"):
    tokenizers.load(tmp_path / "t.json")
