"""A trained run that is examined: its model, tokenizer and what it takes requests with."""

import dataclasses
import functools
import pathlib

from moe_parity import files
from moe_parity.data import chat_template
from moe_parity.data.inner_text import adds_space
from moe_parity.data.token_store import TokenStore
from moe_parity.downstream.likelihood import Likelihood
from moe_parity.errors import UserError
from moe_parity.inference.generator import Generator
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.training.checkpoint import newest_step
from moe_parity.training.load_run import (
  TrainedModel,
  load_run,
  open_run_data,
  open_tokenizer,
  window,
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides a score in addition to checkpoint and task.

  Attributes:
    step: of the checkpoint; None takes the newest.
    dtype: to compute in; "" as trained.
    context: positions of the window; 0 as many as in training.
    limit: items of a task at most, the same ones in every run; 0 for all.
    chat: questions are turns of a chat, in the template that the run was fine-tuned with.
    run_code: generated programs are executed (see `sandbox`).
    tokenizer: a tokenizer.json, where the run's data are not on this machine.
  """

  step: int | None = None
  dtype: str = ""
  context: int = 0
  limit: int = 0
  chat: bool = False
  run_code: bool = False
  tokenizer: str = ""

  def __post_init__(self):
    for name in ("context", "limit"):
      if getattr(self, name) < 0:
        raise UserError(f"{name}={getattr(self, name)} is negative; use 0 for all there is")


class Examinee:
  """A run with its checkpoint loaded. Programs are made when they are first needed."""

  def __init__(self, folder: pathlib.Path, settings: Settings, sizes: MeshSizes = MeshSizes()):  # noqa: B008 - frozen
    """
    Raises:
      UserError: no run, no checkpoint, another tokenizer, a window beyond what the model has
        seen, no chat template where chats are asked for; see `load_run`.
    """
    self.folder, self.settings = folder, settings
    self.run: TrainedModel = load_run(folder, sizes, settings.step)
    self.tokenizer = open_tokenizer(folder, self.run, settings.tokenizer)
    options = self.run.options
    self.options = dataclasses.replace(options, dtype=settings.dtype) if settings.dtype else options
    self.num_positions = window(self.run, settings.context)
    self.template = chat_template.read(folder) if settings.chat else None
    if settings.chat and self.template is None:
      raise UserError(
        f"{folder} has no {chat_template.FILE}, so it was not fine-tuned on chats; leave --chat"
        " out, or give a run that `moe-parity sft` made"
      )

  @functools.cached_property
  def key(self) -> dict:
    """What of the run and the settings decides its numbers, by content."""
    step = self.settings.step
    if step is None:
      step = newest_step(self.folder / "checkpoints")
    return {
      "checkpoint": files.tree_sha256(self.folder / "checkpoints" / str(step)),
      "step": step,
      "tokenizer": self.tokenizer.fingerprint,
      "dtype": str(self.options.dtype),
      "context": self.num_positions,
      "limit": self.settings.limit,
      "chat": self.template.jinja() if self.template else "",
      # Of such a tokenizer continuations were one space off before.
      **({"inner_text": 1} if adds_space(self.tokenizer) else {}),
    }

  def training_text(self) -> TokenStore:
    """The token store that the run was trained with.

    Raises:
      UserError: it is not on this machine, or holds other data today; an imported model has none.
    """
    if self.run.plan.get("kind") == "imported":
      raise UserError(f"{self.folder} is an imported model; its training text is not known")
    return open_run_data(self.folder, self.run.config)

  @functools.cached_property
  def model(self) -> InferenceModel:
    """The model with its weights on the devices.

    Raises:
      UserError: weights that are not finite.
    """
    run = self.run
    return InferenceModel(run.architecture, self.options, run.params, run.buffers, run.mesh)

  @functools.cached_property
  def likelihood(self) -> Likelihood:
    """Scores continuations; raises as `model`."""
    return Likelihood(self.model, num_positions=self.num_positions)

  @functools.cached_property
  def generator(self) -> Generator:
    """Continues text; raises as `model`."""
    ids = self.tokenizer.vocab_size
    return Generator(self.model, num_positions=self.num_positions, num_ids=ids)
