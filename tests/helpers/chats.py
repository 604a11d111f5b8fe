"""Chats for tests, and which of their ids are scored, by a reader that knows no template."""

import json
import random

WORDS = "one two three yes no éa 日本 x".split()


def chat(rng, turns, system=False):
  messages = [{"role": "system", "content": "Be brief."}] if system else []
  for number in range(2 * turns):
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))
    messages.append({"role": ("user", "assistant")[number % 2], "content": text})
  return messages


def chats(count, seed=0):
  """Chats of one to three rounds, a third with a system turn, all different."""
  rng = random.Random(seed)
  found = []
  for number in range(count):
    made = chat(rng, rng.randint(1, 3), number % 3 == 0)
    made[-2]["content"] = f"{number}? {made[-2]['content']}"
    found.append(made)
  return found


def write(path, made):
  lines = (json.dumps({"messages": messages}, ensure_ascii=False) for messages in made)
  path.write_text("".join(line + "\n" for line in lines), "utf-8")
  return str(path)


def scored_by_reading(ids, marks, end):
  """Whether each id is of the assistant's writing, read from the left.

  Args:
    marks: role -> id. end: the id that ends an answer.
  """
  roles = {i: role for role, i in marks.items()}
  speaker, found = None, []
  for i in ids:
    if i in roles:
      speaker = roles[i]
      found.append(False)
    else:
      found.append(speaker == "assistant")
      if i == end:
        speaker = None
  return found
