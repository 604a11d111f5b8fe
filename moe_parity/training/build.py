"""Builds what trains an arm from its config and plan: options, mesh, abstract step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe_parity.errors import UserError
from moe_parity.model.documents import DocumentSeparators
from moe_parity.model.options import ModelOptions
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.expert_parallel import check_token_dispatch
from moe_parity.planning.mesh_sizes import check_arm, read_mesh, resolve
from moe_parity.planning.run_length import check_micro_batches
from moe_parity.sharding.mesh import batch_sharding, make_mesh
from moe_parity.training.optimizer import OptimizerOptions
from moe_parity.training.state import abstract_state
from moe_parity.training.step import StepOptions, make_train_step


def config_of_arm(config: ConfigDict, plan: ArmPlan) -> ConfigDict:
  """The config that an arm trains with: the study's, with what the arm decides of the model.

  The one place where it applies, for `train`, `study` and `compile` alike; a run's config.json
  holds the result.
  """
  config = ConfigDict(config.to_dict())
  if plan.gates:
    config.model.normalize_gates = plan.gates == "normalized"
  if plan.routed_scale:
    config.model.routed_scale = plan.routed_scale
  return config.lock()


def model_options(config: ConfigDict) -> ModelOptions:
  """The config's choices for the model."""
  fields = {field.name for field in dataclasses.fields(ModelOptions)}
  chosen = {name: value for name, value in config.model.items() if name in fields}
  return ModelOptions(**chosen, token_dispatch=config.mesh.token_dispatch)


def optimizer_options(config: ConfigDict, plan: ArmPlan) -> OptimizerOptions:
  """The config's optimizer fields and the rates and steps that the plan derived for this arm."""
  o = config.optimizer
  return OptimizerOptions(
    peak_learning_rate=plan.peak_learning_rate,
    final_learning_rate=plan.final_learning_rate,
    num_steps=plan.num_steps,
    warmup_steps=plan.warmup_steps,
    b1=o.b1,
    b2=o.b2,
    epsilon=o.epsilon,
    weight_decay=o.weight_decay,
    clip_norm=o.clip_norm,
  )


def step_options(
  config: ConfigDict, plan: ArmPlan, documents: DocumentSeparators | None = None
) -> StepOptions:
  """Loss weights, the number of micro-batches, and how documents are separated.

  Raises:
    UserError: micro-batches that do not divide the batch.
  """
  check_micro_batches(plan.name, plan.batch_sequences, config.train.micro_batch_sequences)
  micro = config.train.micro_batch_sequences or plan.batch_sequences
  m = config.model
  return StepOptions(
    m.balance_weight,
    m.z_weight,
    m.bias_update_rate,
    accumulation=plan.batch_sequences // micro,
    documents=documents,
  )


def make_run_mesh(config: ConfigDict, plan: ArmPlan) -> Mesh | None:
  """The config's mesh on the devices of all processes; None for one device.

  Raises:
    UserError: devices, arm and sizes do not fit (`planning.mesh_sizes`); a token dispatcher
      that the platform does not have; several processes for a single device.
  """
  sizes = resolve(read_mesh(config.mesh), jax.device_count())
  check_arm(sizes, plan, config.train.micro_batch_sequences)
  check_batch_splits(config, plan, sizes.expert, sizes.num_devices)
  if sizes.num_devices == 1 and jax.process_count() > 1:
    raise UserError(
      f"{jax.process_count()} processes were started for a mesh of one device; set"
      " --config.mesh.data=-1, or start one process"
    )
  if sizes.expert > 1 and plan.architecture.is_moe:
    check_token_dispatch(
      config.mesh.token_dispatch or "all_to_all",
      jax.default_backend(),
      num_experts=plan.architecture.num_experts,
      num_devices=sizes.expert,
      capacity_factor=config.model.capacity_factor,
    )
  return make_mesh(sizes)


def check_batch_splits(
  config: ConfigDict, plan: ArmPlan, expert_axis: int, num_devices: int
) -> None:
  """Refuses a `model.num_batch_splits` that cannot be; 0, the platform's own number, always can.

  Raises:
    UserError: parts that do not divide a device's sequences, where experts are sharded.
  """
  splits = config.model.num_batch_splits
  rows = config.train.micro_batch_sequences or plan.batch_sequences
  if splits > 1 and expert_axis > 1 and plan.architecture.is_moe and rows % (splits * num_devices):
    raise UserError(
      f"model.num_batch_splits={splits} does not divide the {rows // num_devices} sequences that"
      f" each of {num_devices} devices has at a time; use a divisor of them, or 0"
    )


def abstract_step(
  config: ConfigDict, plan: ArmPlan, mesh: Mesh
) -> tuple[Callable, tuple[Any, ...]]:
  """An arm's jitted train step and its abstract arguments, for `step.lower(*arguments)`.

  Args:
    mesh: of this machine's devices, or of another's: nothing is run or allocated.
  """
  config = config_of_arm(config, plan)
  check_batch_splits(config, plan, mesh.shape["expert"], mesh.size)
  model = model_options(config)
  optimizer = optimizer_options(config, plan)
  step = make_train_step(plan.architecture, model, optimizer, step_options(config, plan), mesh)
  shape = (plan.batch_sequences, plan.seq_len)
  tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
  return step, (abstract_state(plan.architecture, model, optimizer, mesh), tokens, tokens)
