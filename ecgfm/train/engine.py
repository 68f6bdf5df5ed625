"""DeepSpeed's engine around an objective.

With `--engine.precision float32` and `bfloat16`, torch's autocast, the weights are float32; with the other two they
are of 16 bits, beside float32 masters that ZeRO cuts into pieces. A checkpoint holds the float32 ones, whole, and so
does not depend on the precision, the stage or the ranks that wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils import deterministic

from ecgfm.data.batch import Batch
from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.kernels import dispatch
from ecgfm.nn.norms import BatchNorm
from ecgfm.nn.recompute import Blocks
from ecgfm.objectives.base import Losses, Objective, Progress
from ecgfm.train.averages import build_averages, gather_lasting, piece_of, split_groups_
from ecgfm.train.engine_config import LARGEST_BUCKET, MASTERS, EngineConfig, deepspeed_settings
from ecgfm.train.world import World, import_deepspeed

ENGINE = "engine.safetensors"
"""Weights, AdamW's averages and their step, whole, whatever the ranks and the ZeRO stage were."""
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's loss scaler remembers."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """Forward, backward, step and checkpoints of one objective over all ranks.

    Args:
        config: Precision and ZeRO stage.
        world: The ranks.
        objective: Float32, the same on every rank.
        optimizer: Over the objective's trained parameters.
        micro_batch_size: Windows of a micro-batch on one rank.
        clip_norm: Largest norm of the gradient.
    """

    def __init__(
        self,
        config: EngineConfig,
        world: World,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch_size: int,
        clip_norm: float | None,
    ) -> None:
        self.settings = deepspeed_settings(config, micro_batch_size=micro_batch_size, clip_norm=clip_norm)
        if config.zero_stage in (1, 2):
            # Each backward pass allocates so many numbers for gradients, 2 GB by default: one bucket holds all in less.
            trained = sum(weight.numel() for weight in objective.parameters() if weight.requires_grad)
            self.settings["zero_optimization"].setdefault("reduce_bucket_size", min(trained, LARGEST_BUCKET))
        self.world = world
        if config.checkpoint_activations:
            recompute_(objective, compiled=config.compile)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # Else torch fills what it allocates, and DeepSpeed allocates the gradients' bucket in every backward pass.
            deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(config.deterministic)
        dispatch.choose(config.kernels)
        self._stage: int = config.zero_stage
        self._masters = config.precision in MASTERS
        exact = {}
        if self._masters:
            exact = {name: weight.detach().clone() for name, weight in objective.named_parameters()}
            split_groups_(optimizer, objective)
        self._engine, *_ = import_deepspeed().initialize(
            model=objective.to(world.device), optimizer=optimizer, config=self.settings
        )
        self.objective = objective
        self._optimizer: Any = optimizer
        self._averages = build_averages(objective, self._engine.optimizer, stage=self._stage, masters=self._masters)
        if self._masters:
            # DeepSpeed makes the masters of the weights after it has rounded those to 16 bits.
            self._set_weights(exact)
        del exact
        self._scaler: Any = self._engine.optimizer.loss_scaler if config.precision == "float16" else None
        if self._scaler:
            # A gradient that no scale makes finite is a bad step, of which the alarms bear some.
            self._scaler.raise_error_at_min_scale = False
        if config.compile:
            mode = {"mode": "reduce-overhead"} if config.cuda_graphs else {}
            self._engine.compile(backend="inductor", compile_kwargs=mode)
        self._config = config
        self.applied = False
        """Whether the last step moved the weights, the same on every rank: not when the gradient was not finite."""
        self.rescaled = False
        """Whether the last step was dropped because the loss scale was too high, which is halved now. So it is too when
        the gradient is not finite for another reason."""

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied by, in float16."""
        return self._scaler.cur_scale if self._scaler else None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, whose values the schedules set."""
        groups: list[dict[str, Any]] = self._engine.optimizer.param_groups
        return groups

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Return the losses of a micro-batch. All ranks must call it."""
        self.world.step = at.step
        if self._config.compile:
            any_length_(batch)
        if self._config.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        losses: Losses = self._engine(batch, at)
        if self._config.cuda_graphs:
            # The next micro-batch writes into the same memory.
            losses = {name: value.clone() for name, value in losses.items()}
        return losses

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's mean loss. All ranks must call it.

        A loss that is not finite makes all of the gradient so, on every rank: the step will be skipped.
        """
        # Times 1.0 changes no bit, and the device need not be waited for.
        self._engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan))

    def step(self) -> bool:
        """Step the optimizer when all micro-batches are in; tell whether they were. All ranks must call it.

        A gradient whose norm over all ranks is not finite is dropped instead, and `applied` says so.
        """
        complete = bool(self._engine.is_gradient_accumulation_boundary())
        # ZeRO looks at the norm itself before it steps, and waits for the device to know it. Stage 0 looks at nothing:
        # by now its gradients are the same on every rank, and we tell AdamW as a GradScaler does, on the device. We
        # hear of it when AdamW is queued already.
        dropped = self._gradient_not_finite() if complete and not self._stage else None
        self._optimizer.found_inf = dropped
        scale = self._scaler.cur_scale if self._scaler else 0.0
        self._engine.step()
        self.applied = complete and bool(self._engine.was_step_applied()) and not (dropped is not None and dropped > 0)
        self.rescaled = self._scaler is not None and complete and not self.applied and self._scaler.cur_scale < scale
        return complete

    @torch.no_grad()
    def after_step(self, at: Progress) -> dict[str, float]:
        """Do what an objective does once per applied step; return figures to log. All ranks must call it."""
        figures = {}
        if self._averages.pairs:
            figures["momentum"] = self.objective.momentum(at)
            self._averages.move_(figures["momentum"])
        return figures | self.objective.after_step(at)

    def _gradient_not_finite(self) -> Tensor:
        """Return 1 where the gradient's norm is not finite and 0 otherwise, float32, on the device."""
        gradients = [weight.grad for weight in self.objective.parameters() if weight.grad is not None]
        return (~torch.isfinite(torch.nn.utils.get_total_norm(gradients))).float()

    def gradient_norm(self) -> float | None:
        """Return the norm of the last step's gradient, where the engine knows it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def collect(self) -> dict[str, Tensor]:
        """Return weights and AdamW's state, whole, in CPU memory that nothing changes later. All ranks must call it.

        DeepSpeed's own files are the pieces of one number of ranks and one ZeRO stage, and pickles. This is what they
        hold, and anybody can go on from it: `model.*` are float32 weights and the buffers as they are, `exp_avg.*` and
        `exp_avg_sq.*` AdamW's averages, `step` its step. Rank 0 has all of it, 12 bytes a weight; other ranks get {}.
        """
        whole = {}
        for name, tensor in self._whole():
            if self.world.rank == 0:
                # Copies: ZeRO keeps all weights in one buffer, of which safetensors would refuse a part.
                whole[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return whole

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what a checkpoint holds, gathered one by one. All ranks must go through it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        averages = dict(self._averages.whole())
        weights = dict(self.objective.named_parameters())
        for name, tensor in self.objective.state_dict().items():
            if name in averages:
                yield f"model.{name}", averages[name]
            elif name in weights:
                yield f"model.{name}", self._whole_weight(weights[name])
            else:
                yield f"model.{name}", tensor
        if self._scaler:
            yield "loss_scale", torch.tensor([getattr(self._scaler, key) for key in SCALER], dtype=torch.float64)
        base = self._adamw()
        if not base.state:  # no step was done yet, or none had a finite gradient
            return
        yield "step", next(iter(base.state.values()))["step"]
        self._link()
        for name, weight in self._trained():
            for key in MOMENTS:
                if self._stage:
                    yield f"{key}.{name}", safe_get_full_optimizer_state(weight, key)
                elif weight in base.state:  # it had a gradient
                    yield f"{key}.{name}", base.state[weight][key]

    def _whole_weight(self, weight: torch.nn.Parameter) -> Tensor:
        """Return a weight in float32, from wherever it is. All ranks must call it."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        if weight.requires_grad and (self._masters or self._stage == 3):
            master: Tensor = safe_get_full_fp32_param(weight)
            return master
        if self._stage < 3:
            return weight.detach().float()
        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().float().clone()

    def load(self, folder: Path) -> None:
        """Read what `collect` returned, before the first step. All ranks must call it.

        Raises:
            CheckpointError: The file is not there, or not of this objective.
        """
        assert not self._adamw().state, "a checkpoint is loaded before the first step"
        if not (folder / ENGINE).is_file():
            raise CheckpointError(f"{folder / ENGINE} is missing: another version of ecgfm wrote {folder}")
        with safe_open(folder / ENGINE, framework="pt") as file:
            names = set(file.keys())
            model = {name[6:]: file.get_tensor(name) for name in names if name.startswith("model.")}
            self._check_names(model, folder)
            self._set_weights(model)
            if self._scaler and "loss_scale" in names:
                scale, *counts = file.get_tensor("loss_scale").tolist()
                for key, value in zip(SCALER, (scale, *map(int, counts)), strict=True):
                    setattr(self._scaler, key, value)
            if "step" in names:
                moments = {name: file.get_tensor(name) for name in names if name.startswith(MOMENTS)}
                self._set_moments(file.get_tensor("step"), moments)

    def _check_names(self, model: dict[str, Tensor], folder: Path) -> None:
        """Refuse what is not of this objective.

        Raises:
            CheckpointError: What is missing, too much, or of another shape.
        """
        weights = dict(self.objective.named_parameters())
        wanted = {name: _shape(weights.get(name, tensor)) for name, tensor in self.objective.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in model.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise CheckpointError(
                    f"{folder / ENGINE} is not of this objective: {name} has shape {found.get(name, 'none')} there "
                    f"and {wanted.get(name, 'none')} here"
                )

    def _set_weights(self, values: dict[str, Tensor]) -> None:
        """Set weights and buffers by name, and the float32 masters and averages. All ranks must call it."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        weights = dict(self.objective.named_parameters())
        with torch.no_grad():
            for name, buffer in self.objective.named_buffers():
                if name in values:
                    buffer.copy_(values[name])
            for name, weight in weights.items():
                value = values[name].to(weight.device, torch.float32)
                if self._stage == 3:
                    piece = piece_of(weight, value)
                    weight.ds_tensor.data.copy_(piece)  # type: ignore[attr-defined]
                    if weight.requires_grad:
                        safe_set_local_fp32_param(weight, piece)
                else:
                    weight.copy_(value)
                    if self._masters and weight.requires_grad:
                        safe_set_full_fp32_param(weight, value)
                self._averages.set_(name, value)
        if self._stage == 3:
            gather_lasting(list(weights.values()))
        elif self._stage and not self._masters:
            self._engine.optimizer.refresh_fp32_params()

    def _set_moments(self, step: Tensor, moments: dict[str, Tensor]) -> None:
        """Set AdamW's state by name."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        base = self._adamw()
        # Under ZeRO AdamW knows this rank's piece of each group, one flat tensor, and DeepSpeed which weight is where
        # in it.
        flat = [weight for group in base.param_groups for weight in group["params"]]
        for weight in self._engine.optimizer.fp32_partitioned_groups_flat if self._stage == 3 else flat:
            base.state[weight] = {"step": step.to(weight.device, copy=True)}
            base.state[weight] |= {key: torch.zeros_like(weight) for key in MOMENTS}
        self._link()
        for name, weight in self._trained():
            for key in MOMENTS:
                if f"{key}.{name}" not in moments:
                    if not self._stage:
                        base.state.pop(weight, None)
                    continue
                moment = moments[f"{key}.{name}"].to(weight.device)
                if self._stage == 3:
                    safe_set_local_optimizer_state(weight, piece_of(weight, moment), key)
                elif self._stage:
                    safe_set_full_optimizer_state(weight, moment, key)
                else:
                    base.state[weight][key].copy_(moment)

    def _adamw(self) -> torch.optim.Optimizer:
        """Return torch's optimizer, which ZeRO wraps and stage 0 does not."""
        optimizer = self._engine.optimizer
        base: torch.optim.Optimizer = optimizer.optimizer if self._stage else optimizer
        return base

    def _link(self) -> None:
        """Tell ZeRO where AdamW's averages of each weight are, before it is asked for them."""
        if self._stage in (1, 2) and self._adamw().state:
            # DeepSpeed 0.19.8 does it after the step of the first of our two groups, when the second has none, and
            # never again.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.objective.named_parameters() if weight.requires_grad]


def any_length_(batch: Batch) -> None:
    """Tell torch.compile that the number of hidden tokens changes from batch to batch.

    It is one draw a batch: of 200 tokens 21 numbers, each of which would be a graph of its own. Buckets would change
    the recipe's masks, so the number is a symbol from the first batch on. Left to itself torch.compile takes the first
    number for a constant and compiles anew at the second.
    """
    for index_BK in (batch.keep_BK, batch.hide_BM):
        if index_BK is not None:
            torch._dynamo.maybe_mark_dynamic(index_BK, 1)


def recompute_(objective: Objective, *, compiled: bool) -> None:
    """Let all blocks of an objective forget their activations.

    Raises:
        ConfigError: It has none that can, or none that torch.compile can let do so.
    """
    found = [module for module in objective.modules() if isinstance(module, Blocks)]
    if compiled and any(isinstance(part, BatchNorm) for module in found for part in module.modules()):
        raise ConfigError(
            "--engine.compile does not go with --engine.checkpoint-activations where blocks have a batch norm, whose "
            "running averages must not move a second time; use --encoder.norm group, or leave one of the two out"
        )
    if not found:
        raise ConfigError(
            f"--engine.checkpoint-activations: {type(objective).__name__} has no blocks that can be computed again; "
            "leave it out"
        )
    for module in found:
        module.recomputed = True


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, also of a weight that ZeRO 3 has cut."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))
