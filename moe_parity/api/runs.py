"""`mp.open_run`: one trained run. Only `model`, `routing` and `generate` load JAX."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from moe_parity.api.places import Place
from moe_parity.api.tables import as_table
from moe_parity.config import from_stored
from moe_parity.errors import UserError
from moe_parity.evaluation import specialization
from moe_parity.report import cards
from moe_parity.report.routed_text import RoutedText
from moe_parity.report.table_formats import count
from moe_parity.study import reading
from moe_parity.training import run_folder

if TYPE_CHECKING:
  from moe_parity.inference.completion import Completion
MOODS = {"done": "good", "failed": "bad", "missing": "bad"}


class Run:
  """A run folder: what was planned, what came of it, and the model.

  Attributes:
    folder: on this machine. name, seed: of its arm. status: done | running | pending | failed |
      missing.
    plan, result, certificate: its JSON files; {} where one is not there (yet).
  """

  def __init__(self, run: reading.RunRecord, place: Place):
    self._run, self._place = run, place
    self._loaded: dict[int | None, Any] = {}
    self._generators: dict[tuple, Any] = {}
    self.folder, self.name, self.seed = run.folder, run.name, run.seed
    self.status, self.error = run.status, run.error
    self.plan, self.result, self.certificate = run.plan, run.result, run.certificate

  @property
  def label(self) -> str:
    return self._run.label

  @property
  def bpc(self) -> float | None:
    """Bits per character on held-out text; None before the run is done."""
    return self.result.get("validation", {}).get("bpc")

  @property
  def is_moe(self) -> bool:
    return self.plan.get("kind") == "moe"

  def lines(self, kind: str = "train") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a kind, train or validation; [] where none is logged."""
    if kind not in ("train", "validation"):
      raise UserError(f"kind={kind!r} is not logged; use 'train' or 'validation'")
    train, validation, _ = reading.read_metrics(self.folder)
    return train if kind == "train" else validation

  def metrics(self, kind: str = "train") -> Any:
    """One row a logged step: losses, gradient norm, learning rate, tokens, routing health."""
    return as_table(self.lines(kind))

  def loads(self) -> dict[str, np.ndarray]:
    """Expert loads as they were logged in training: steps [R], num_tokens [R], loads [R, MoE
    layers, experts]; {} for a dense run."""
    return reading.read_routing(self.folder)

  def routing_counts(self) -> specialization.RoutingCounts | None:
    """Experts counted over held-out text by document; None where the run counted none."""
    return specialization.load(self.folder)

  def specialization(self) -> Any:
    """One row an MoE layer: mutual information of domain and expert in nats, what chance gives,
    and the share of permutations that reach it. Without rows where nothing was counted."""
    counts = self.routing_counts()
    return as_table(specialization.specialization_by_layer(counts) if counts else [])

  def by_domain(self) -> Any:
    """One row a domain of the held-out text: bits per character and byte."""
    domains = self.result.get("validation", {}).get("by_domain", {})
    return as_table({"domain": name} | row for name, row in domains.items())

  def tokenizer(self) -> Any:
    """The tokenizer of the run's data; makes the token store where it is not there."""
    from moe_parity.data.prepare import open_data

    path = self.folder / run_folder.CONFIG
    if not path.is_file():
      raise UserError(
        f"{self.folder} has no {run_folder.CONFIG}; give a folder that was trained in"
      )
    return open_data(ConfigDict(from_stored(run_folder.read_json(path))).data).tokenizer

  def model(self, step: int | None = None) -> Any:
    """The trained model, an NNX module; loads JAX. treescope shows it in a notebook.

    Args:
      step: of the checkpoint; None takes the newest.
    Raises:
      UserError: there is no checkpoint, or none of this step.
    """
    from flax import nnx

    trained = self._trained(step)
    from moe_parity.model.transformer import abstract_model

    graph = abstract_model(trained.architecture, trained.options)[0]
    return nnx.merge(graph, trained.params, trained.buffers)

  def routing(self, text: str, step: int | None = None) -> RoutedText:
    """The experts that every token of a text goes to in every MoE layer, and their gates.

    The text is read as a document is scored: after the token that begins one, in windows of the
    sequence length of training, each by itself. Loads JAX.

    Raises:
      UserError: a dense run, an empty text, no checkpoint.
    """
    if not self.is_moe:
      raise UserError(f"{self.name} is dense and routes nothing; open an MoE run")
    if not text:
      raise UserError("the text is empty; give at least one character")
    trained, tokenizer = self._trained(step), self.tokenizer()
    from moe_parity.data.inner_text import decode_after
    from moe_parity.evaluation.token_choices import choices_of_tokens

    ids = tokenizer.encode_batch([text])[0].astype(np.int32)
    shape = trained.architecture
    experts, gates = choices_of_tokens(
      shape, trained.options, trained.params, trained.buffers,
      np.concatenate([[tokenizer.bos_id], ids]).astype(np.int32), self.plan["seq_len"],
    )  # fmt: skip
    layers = tuple(i + 1 for i, is_moe in enumerate(shape.moe_layers) if is_moe)
    before = [tokenizer.bos_id, *ids[:-1]]
    pairs = zip(before, ids, strict=True)
    tokens = tuple(decode_after(tokenizer, int(left), [int(i)]) for left, i in pairs)
    return RoutedText(tokens, experts[1:], gates[1:], layers, shape.num_experts)

  def generate(
    self,
    prompts: str | Sequence[str],
    *,
    max_tokens: int = 0,
    temperature: float | int = 0.0,
    top_k: int = 0,
    top_p: float | int = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    step: int | None = None,
    dtype: str = "",
    chat: bool = False,
  ) -> "Completion | list[Completion]":
    """Continues a text, or several at once. Loads JAX; the second call of a session is fast.

    Args:
      max_tokens: 0 generates up to the model's last position.
      temperature: 0 takes the most likely token. top_k, top_p: draw from fewer tokens.
      stop: texts that end a completion.
      dtype: to compute in; "" as it was trained.
      chat: prompts are what a user says to a fine-tuned run; it answers.
    Returns:
      a `Completion` (text, tokens, finish) for a prompt; a list of them for several.
    Raises:
      UserError: no checkpoint, a prompt that is too long, a sampling that does not fit, a chat with
        a run that was never trained on chats.
    """
    template = None
    if chat:
      from moe_parity.data.chat_template import read

      template = read(self.folder)
      if template is None:
        raise UserError(f"chat=True: {self.name} was never trained on chats; leave it out")
    self._start()
    from moe_parity.inference.completion import complete
    from moe_parity.inference.sampling import Sampling
    from moe_parity.training.load_run import open_generator

    sampling = Sampling(float(temperature), top_k, float(top_p))
    if (step, dtype) not in self._generators:
      self._generators[step, dtype] = open_generator(self.folder, step=step, dtype=dtype)
    generator, tokenizer = self._generators[step, dtype]
    several = [prompts] if isinstance(prompts, str) else list(prompts)
    done = complete(
      generator, tokenizer, several, max_tokens=max_tokens, sampling=sampling, stop=list(stop),
      seed=seed, template=template,
    )  # fmt: skip
    return done[0] if isinstance(prompts, str) else done

  def _trained(self, step: int | None) -> Any:
    self._start()
    from moe_parity.training.load_run import load_run

    if step not in self._loaded:
      self._loaded[step] = load_run(self.folder, step=step)
    return self._loaded[step]

  def _start(self) -> None:
    """Fetches checkpoints where they are elsewhere, and starts JAX."""
    from moe_parity.startup import start_jax

    self._place.fetch_checkpoints(self.folder)
    start_jax()

  def _facts(self) -> list[str]:
    plan = self.plan
    facts = [self.status]
    if "num_tokens" in plan:  # an imported model has no data
      facts += [
        f"N = {count(plan['num_params'])}",
        f"r_a = {100 * plan['activation_rate']:.1f} %",
        f"{count(plan['num_tokens'])} tokens",
        f"{plan['epochs']:.2f} epochs",
      ]
    if self.bpc is not None:
      facts.append(f"{self.bpc:.4f} bits per character")
    return facts

  def __repr__(self) -> str:
    return f"Run {self.name} (seed {self.seed}): {', '.join(self._facts())}"

  def _repr_html_(self) -> str:
    body = f"<div>{cards.words(self.error)}</div>" if self.error else ""
    title = f"Run {self.name} (seed {self.seed})"
    return cards.card(title, self._facts(), body, mood=MOODS.get(self.status, "open"))


def open_run(place: str | pathlib.Path) -> Run:
  """Opens a run to read and to use: a folder, or gs://bucket/study/runs/name (copied; its
  checkpoints only when they are needed).

  Raises:
    UserError: the place is out of reach, or holds no run.
  """
  location = Place(place)
  path = location.folder / run_folder.PLAN
  plan = run_folder.read_json(path) if path.is_file() else {}
  if "architecture" not in plan:
    raise UserError(f"{place} holds no run (no {run_folder.PLAN} of one arm); a run of a study is"
                    " open_study(...).run(name)")  # fmt: skip
  return Run(reading.read_study(location.folder).runs[0], location)
