"""Published laws behind one interface. Each says its units, the range it was fitted on, its source.

`law.predict(**inputs)` gives its outputs by name. `law.extrapolates(**inputs)` names every input
outside the fitted range, so that a caller can state it next to the number; nothing is clamped.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping

from moe_parity.errors import UserError

Number = int | float


class Law(abc.ABC):
  """A formula with its alphabet.

  Attributes:
    name: short, unique. source: where the constants stand.
    inputs, outputs: quantity -> unit and meaning.
    fitted_on: quantity -> (lowest, highest) of the runs behind the constants; None is not stated.
    caveat: what the range does not say.
  """

  name: str
  source: str
  inputs: Mapping[str, str]
  outputs: Mapping[str, str]
  fitted_on: Mapping[str, tuple[float | None, float | None]]
  caveat: str = ""

  def predict(self, **inputs: Number) -> dict[str, float]:
    """Outputs by name.

    Raises:
      UserError: an input is missing, foreign, not a finite number above 0, or outside the domain.
    """
    self._check(inputs)
    return self._predict(**inputs)

  def extrapolates(self, **inputs: Number) -> list[str]:
    """One sentence for every input outside the range the law was fitted on."""
    self._check(inputs)
    sentences = []
    for name, (low, high) in self.fitted_on.items():
      value = inputs[name]
      if low is not None and value < low:
        sentences.append(
          f"{name}={value:.4g} is below {low:.4g}, where {self.name} was fitted from"
        )
      if high is not None and value > high:
        sentences.append(f"{name}={value:.4g} is above {high:.4g}, where {self.name} was fitted to")
    return sentences

  def _check(self, inputs: Mapping[str, Number]) -> None:
    for name in self.inputs:
      if name not in inputs:
        raise UserError(f"{name} is missing; {self.name} needs {', '.join(self.inputs)}")
    for name, value in inputs.items():
      if name not in self.inputs:
        raise UserError(f"{name!r} is no input of {self.name}; give {', '.join(self.inputs)}")
      if not math.isfinite(value) or value <= 0:
        raise UserError(
          f"{name}={value} is not a finite number above 0; {self.name} takes {self.inputs[name]}"
        )

  @abc.abstractmethod
  def _predict(self, **inputs: Number) -> dict[str, float]:
    """The formula itself, on checked inputs."""


@dataclasses.dataclass(frozen=True)
class StepLaw(Law):
  """Peak learning rate and batch from size and data: lr = a N^b D^c, batch = d D^e tokens.

  `rounded` takes the constants the authors print, otherwise the bootstrap means their tool uses:
  about 2 % more learning rate. N is the total, for an MoE too: the public MoE runs agree with it
  for low activation rates, while the active count would give 2 to 10 times too much.
  """

  rounded: bool = False
  source = "arXiv:2503.04715; unrounded: means of 1000 bootstrap fits in step-law/steplaw"
  inputs = {"num_params": "all parameters without vocabulary matrices", "num_tokens": "tokens seen"}
  outputs = {
    "peak_learning_rate": "peak rate of Adam, cosine to a fixed 1e-5",
    "batch_tokens": "tokens a step",
  }
  fitted_on = {"num_params": (6e7, 1.1e9), "num_tokens": (2e9, 1e11)}
  caveat = "Dense grid up to 1B; 708 MoE runs on a 2B backbone, best points within 2.4x of the law"

  @property
  def name(self) -> str:
    return "StepLaw (rounded)" if self.rounded else "StepLaw"

  def _predict(self, num_params: Number, num_tokens: Number) -> dict[str, float]:
    if self.rounded:
      rate = 1.79 * num_params**-0.713 * num_tokens**0.307
      batch = 0.58 * num_tokens**0.571
    else:
      rate = 1.79734 * num_params**-0.712922 * num_tokens**0.307491
      batch = 0.580688 * num_tokens**0.570944
    return {"peak_learning_rate": rate, "batch_tokens": batch}


# Of DataConstrainedLaw: beta of the data term; R*, the epochs over which repetition loses worth.
REUSE_EXPONENT, REUSE_TOKEN_DECAY = 0.3526596, 15.387756


@dataclasses.dataclass(frozen=True)
class DataConstrainedLaw(Law):
  """Loss when tokens repeat: each pass is worth less than the one before, as is excess size.

  L = E + A / N_eff^alpha + B / D_eff^beta, D_eff = U (1 + R* (1 - exp(-(epochs - 1) / R*))), and
  N_eff likewise around the parameters that are optimal for the unique tokens U.
  """

  name = "Muennighoff"
  source = "arXiv:2305.16264; constants of huggingface/datablations"
  inputs = {
    "num_params": "parameters of a dense model",
    "num_tokens": "tokens seen",
    "num_unique_tokens": "different tokens among them",
  }
  outputs = {
    "loss": "nats a token (their tokenizer and corpus)",
    "effective_tokens": "unique tokens worth as much as the tokens seen",
    "effective_params": "parameters worth as much",
  }
  fitted_on = {"num_params": (1e7, 9e9), "num_tokens": (None, 9e11)}
  caveat = "Dense models only: no constants for MoE models are published"

  def _predict(
    self, num_params: Number, num_tokens: Number, num_unique_tokens: Number
  ) -> dict[str, float]:
    if num_unique_tokens > num_tokens:
      raise UserError(
        f"num_unique_tokens={num_unique_tokens:.4g} exceeds "
        f"num_tokens={num_tokens:.4g}; unique tokens are among those seen"
      )
    a, b, e = math.exp(6.255414), math.exp(7.3049974), math.exp(0.6254804)
    exponent, token_decay, param_decay = REUSE_EXPONENT, REUSE_TOKEN_DECAY, 5.309743
    # alpha = beta, so the optimum for U tokens is U G^2 with G = (A / B)^(1 / 2 alpha).
    base_params = min(num_params, num_unique_tokens * (a / b) ** (1 / exponent))
    tokens = _saturating(num_unique_tokens, num_tokens, token_decay)
    params = _saturating(base_params, num_params, param_decay)
    loss = e + a / params**exponent + b / tokens**exponent
    return {"loss": loss, "effective_tokens": tokens, "effective_params": params}


@dataclasses.dataclass(frozen=True)
class JointMoELaw(Law):
  """Loss of a Switch model (top-1, every layer MoE, d_ffn = 3 d_model) from size, data, experts.

  L = a E^^delta N_a^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c, where E^ is the
  number of experts after saturation. num_experts = 1 is the dense model.
  """

  name = "joint MoE law"
  source = "arXiv:2502.05172, Eq. 6, Tables 3 and 4"
  inputs = {
    "num_active_params": "active parameters WITH embedding and unembedding",
    "num_tokens": "tokens seen",
    "num_experts": "experts a layer, one chosen",
  }
  outputs = {"loss": "nats a token (their tokenizer and corpus)"}
  fitted_on = {"num_active_params": (None, 2.7e9), "num_experts": (1, 32)}
  caveat = "280 runs up to 5B parameters in all; its FLOPs are 6 N_a D"

  def _predict(
    self, num_active_params: Number, num_tokens: Number, num_experts: Number
  ) -> dict[str, float]:
    if num_experts < 1:
      raise UserError(f"num_experts={num_experts} is below 1; 1 is the dense model")
    start, most = 2.0732, 290.4521
    log_experts = math.log(_saturated(num_experts - 1, start, most))
    model = (
      35.91
      * math.exp(-0.2285 * log_experts)
      * num_active_params ** (-0.1889 + 0.0098 * log_experts)
    )
    data = 35.98 * math.exp(0.5529 * log_experts) * num_tokens ** (-0.1775 - 0.0259 * log_experts)
    return {"loss": model + data + 1.3637}


@dataclasses.dataclass(frozen=True)
class LeverageLaw(Law):
  """How many times the compute a dense model needs for the loss of an MoE: C_dense / C_moe.

  EL = A^^(a + d log10 C + gamma (log2 G)^2 + beta log2 G). The paper names no base of its logs;
  only these two give back its own figures. Its N is free, so it is no law of parity.
  """

  name = "leverage law"
  source = "arXiv:2507.17702, Eq. 13"
  inputs = {
    "activation_ratio": "(active + shared) / (all + shared) experts, 0..1",
    "granularity": "2 d_model / d_expert",
    "train_flops": "compute of the MoE, FLOPs",
  }
  outputs = {"leverage": "dense compute over MoE compute at equal loss"}
  fitted_on = {}
  caveat = (
    "300 runs up to 28B parameters with one shared expert; checked by its authors at 1e22 "
    "FLOPs and an activation ratio of 3 %; the range of its fit is not in our notes"
  )

  def _predict(
    self, activation_ratio: Number, granularity: Number, train_flops: Number
  ) -> dict[str, float]:
    if activation_ratio > 1:
      raise UserError(f"activation_ratio={activation_ratio} exceeds 1; give a share, 0.03 for 3 %")
    log_granularity = math.log2(granularity)
    exponent = (
      1.23
      - 7.61e-2 * math.log10(train_flops)
      + 1.67e-2 * log_granularity**2
      - 1.17e-1 * log_granularity
    )
    return {"leverage": _saturated(activation_ratio, 1.63e-2, 5.28e16) ** exponent}


def _saturated(value: Number, start: Number, most: Number) -> float:
  """1 / (1 / (value + 1 / (1 / start - 1 / most)) + 1 / most): `start` at 0, never above `most`."""
  return 1 / (1 / (value + 1 / (1 / start - 1 / most)) + 1 / most)


def _saturating(base: Number, value: Number, decay: Number) -> float:
  """What `value` is worth in units of `base` when repetition n is worth exp(-n / decay)."""
  return base * (1 + decay * (1 - math.exp(-(value / base - 1) / decay)))


STEP_LAW = StepLaw()
LAWS: tuple[Law, ...] = (
  STEP_LAW,
  StepLaw(rounded=True),
  DataConstrainedLaw(),
  JointMoELaw(),
  LeverageLaw(),
)
