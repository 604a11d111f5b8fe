"""Three formats give the same chats; a chat that breaks a rule is one line that says where."""

import gzip
import json

import pytest

from moe_parity.errors import UserError
from moe_parity.finetuning.chats import BUILTIN_FILE, read_chats, split_chats
from tests.helpers import chats

ASKED, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
MESSAGES = [{"role": "system", "content": "Be brief."}, ASKED, ANSWER]
SHAREGPT = {"system": "Be brief.", "conversations": [
  {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}  # fmt: skip
ALPACA = {"instruction": "Why?", "input": "", "output": "So.", "system": "Be brief."}


def write(folder, *records, name="c.jsonl"):
  path = folder / name
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


@pytest.mark.parametrize("record", [{"messages": MESSAGES}, SHAREGPT, ALPACA], ids=lambda r: min(r))
def test_formats_give_the_same_chat(record, tmp_path):
  (found,), num_duplicates = read_chats(write(tmp_path, record | {"source": "here", "id": 7}))
  assert list(found.messages) == MESSAGES and num_duplicates == 0
  (tmp_path / "a.json").write_text(json.dumps([record]))
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
  for name in ("a.json", "a.jsonl.gz"):
    assert read_chats(str(tmp_path / name))[0][0].digest == found.digest


def test_alpaca_puts_the_input_after_the_instruction(tmp_path):
  (found,), _ = read_chats(write(tmp_path, {"instruction": "Add.", "input": "2, 3", "output": "5"}))
  assert found.messages[0]["content"] == "Add.\n\n2, 3"


def turns(*roles):
  return {"messages": [{"role": role, "content": f"{n} {role}"} for n, role in enumerate(roles)]}


@pytest.mark.parametrize(
  "record, message",
  [
    (turns("assistant", "user"), "turn 1 is the assistant's and should be the user's"),
    (turns("user", "user", "assistant"), "turn 2 is the user's and should be the assistant's"),
    (turns("user", "assistant", "system"), "turn 3 is the system's"),
    (turns("system", "assistant"), "turn 2 is the assistant's"),
    (turns("user"), "has no assistant turn"),
    (turns(), "has no assistant turn"),
    (turns("user", "assistant", "user"), "ends with the user's turn"),
    (turns("user", "tool"), "turn 2 has the role 'tool'; use system"),
    ({"messages": [ASKED, {"role": "assistant", "content": " \n"}]}, r"turn 2 \(assistant\) is em"),
    ({"messages": [ASKED, ANSWER | {"content": ["a"]}]}, "turn 2: content is a list; give a text"),
    ({"messages": [ASKED, ANSWER | {"content": None}]}, "content is a NoneType"),
    ({"messages": [ASKED, ANSWER | {"content": "\ud800"}]}, "holds half of a character"),
    ({"messages": [ASKED, ANSWER | {"weight": 0}]}, "turn 2 has the unknown key 'weight'; take"),
    ({"messages": [ASKED, {"role": "assistant"}]}, "turn 2 has no 'content'"),
    ({"messages": [ASKED, "So."]}, "turn 2 is a str"),
    ({"messages": {"role": "user"}}, "messages is a dict; give a list"),
    ({"messages": MESSAGES, "tools": []}, "unknown key 'tools'; name it in --ignore-keys"),
    (["a"], "is a list; give an object with 'messages'"),
    ({"instruction": "a", "output": "b"}, "has no 'messages', which every record"),
  ],
)
def test_a_chat_that_breaks_a_rule_is_named(record, message, tmp_path):
  path = write(tmp_path, {"messages": MESSAGES}, record)
  with pytest.raises(UserError, match=f"c.jsonl, line 2.*{message}") as found:
    read_chats(path)
  assert "\n" not in str(found.value)


@pytest.mark.parametrize("key", ["input", "system"])
@pytest.mark.parametrize("value", [0, False, [], {}])
def test_what_is_no_text_is_never_left_out(key, value, tmp_path):
  path = write(tmp_path, ALPACA | {key: value})
  with pytest.raises(UserError, match=f"c.jsonl, line 1: {key} is a {type(value).__name__}"):
    read_chats(path)


def test_a_record_is_read_without_the_keys_named(tmp_path):
  plain = [m for m in MESSAGES if m["role"] != "system"]
  path = write(tmp_path, {"messages": plain, "system": "Be brief."})
  (chat,), _ = read_chats(path, ignored_keys=("system",))
  assert list(chat.messages) == plain


def test_a_turn_from_no_name_is_refused(tmp_path):
  path = write(tmp_path, {"conversations": [{"from": ["human"], "value": "Hi"}]})
  with pytest.raises(UserError, match=r"line 1, turn 1 is from \['human'\]; use human, "):
    read_chats(path)


def test_keys_that_do_not_matter_may_be_named(tmp_path):
  path = write(tmp_path, {"messages": MESSAGES, "tools": []})
  assert len(read_chats(path, ignored_keys=("tools",))[0]) == 1


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "is damaged .it is empty"),
    ("\n\n", "holds no chat"),
    ('{"messages": [', "line 1 is not JSON"),
    ('{"text": "a"}', r"has the keys \['text'\]; a chat has those of one format"),
    ('{"messages": [], "conversations": []}', "keys of messages and sharegpt"),
  ],
)
def test_a_file_without_chats_is_refused(text, message, tmp_path):
  (tmp_path / "c.jsonl").write_text(text)
  with pytest.raises(UserError, match=message):
    read_chats(str(tmp_path / "c.jsonl"))


def test_a_missing_file_and_a_wrong_choice_are_named(tmp_path):
  with pytest.raises(UserError, match="nowhere.jsonl is no file; give one"):
    read_chats(f"{tmp_path}/nowhere.jsonl")
  with pytest.raises(UserError, match="names no file"):
    read_chats(" , ")
  with pytest.raises(UserError, match="format='sharegtp' is not one of.*'sharegpt'"):
    read_chats(write(tmp_path, SHAREGPT), form="sharegtp")


def test_duplicates_are_refused_or_counted(tmp_path):
  path = write(tmp_path, {"messages": MESSAGES}, turns("user", "assistant"), ALPACA)
  with pytest.raises(UserError, match="line 3 has"):
    read_chats(path)  # one format a file
  path = write(tmp_path, ALPACA, turns("user", "assistant")["messages"] and ALPACA)
  with pytest.raises(UserError, match="line 2 is the same chat as .*line 1.*leave-out"):
    read_chats(path)
  found, number = read_chats(f"{path},{path}", duplicates="leave-out")
  assert len(found) == 1 and number == 3


def test_what_is_held_out_does_not_depend_on_the_rest(tmp_path):
  made = chats.chats(200)
  every, _ = read_chats(chats.write(tmp_path / "a.jsonl", made))
  some, _ = read_chats(chats.write(tmp_path / "b.jsonl", made[50:150]))
  train, validation = split_chats(every, 0.2)
  assert 20 < len(validation) < 60 and len(train) + len(validation) == 200
  of_some = {chat.digest for chat in split_chats(some, 0.2)[1]}
  assert of_some == {c.digest for c in validation} & {c.digest for c in some}
  wrong = ((0.0, "held_out=0.0 is not over 0"), (1.0, "held_out=1.0 is not over 0"))
  for share, message in (*wrong, (1e-6, "none for validation")):
    with pytest.raises(UserError, match=message):
      split_chats(every, share)


def test_the_built_in_chats_are_chats():
  found, _ = read_chats("builtin")
  longest = max(sum(len(m["content"]) + 1 for m in c.messages) for c in found)
  assert len(found) > 400 and longest < 126  # the demo's model has 128 positions
  assert str(BUILTIN_FILE) in found[0].place
