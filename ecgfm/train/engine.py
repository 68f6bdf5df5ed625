"""DeepSpeed's engine around an objective.

One engine holds the objective in float32; bfloat16 is torch's autocast over it, so that the moving average
of a target encoder is a plain float32 lerp on every rank under ZeRO 0 to 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ecgfm.data.batch import Batch
from ecgfm.errors import CheckpointError
from ecgfm.objectives.base import Losses, Objective, Progress
from ecgfm.train.engine_config import EngineConfig, deepspeed_settings
from ecgfm.train.world import World, import_deepspeed

ENGINE = "engine.safetensors"
"""Weights, AdamW's averages and their step, whole, whatever the ranks and the ZeRO stage were."""
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
        self.world = world
        self._engine, *_ = import_deepspeed().initialize(
            model=objective.to(world.device), optimizer=optimizer, config=self.settings
        )
        self.objective = objective
        self._optimizer: Any = optimizer
        self.applied = False
        """Whether the last step moved the weights, the same on every rank: not when the gradient was not finite."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, whose values the schedules set."""
        groups: list[dict[str, Any]] = self._engine.optimizer.param_groups
        return groups

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Return the losses of a micro-batch. All ranks must call it."""
        self.world.step = at.step
        losses: Losses = self._engine(batch, at)
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
        # ZeRO looks at the norm itself, and waits for the device to know it. Stage 0 looks at nothing: by now its
        # gradients are the same on every rank, and we tell AdamW as a GradScaler does.
        drop = complete and not self._engine.zero_optimization() and not self._finite_gradient()
        self._optimizer.found_inf = torch.ones((), device=self.world.device) if drop else None
        self._engine.step()
        self.applied = complete and not drop and bool(self._engine.was_step_applied())
        return complete

    def _finite_gradient(self) -> bool:
        gradients = [weight.grad for weight in self.objective.parameters() if weight.grad is not None]
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def gradient_norm(self) -> float | None:
        """Return the norm of the last step's gradient, where the engine knows it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save(self, folder: Path) -> None:
        """Write weights and AdamW's state into a folder, whole, from rank 0. All ranks must call it.

        DeepSpeed's own files are the pieces of one number of ranks and one ZeRO stage, and pickles. This is what they
        hold, and anybody can go on from it; rank 0 has all of it, 12 bytes a weight, in its memory while it writes.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        base = self._adamw()
        self._link()
        whole = {f"model.{name}": weight for name, weight in self.objective.state_dict().items()}
        for name, weight in self._trained():
            if not base.state:  # no step was done yet, or none had a finite gradient
                break
            for key in MOMENTS:
                if self._engine.zero_optimization():
                    moment = safe_get_full_optimizer_state(weight, key)  # a collective: every rank is here
                elif weight in base.state:
                    moment = base.state[weight][key]
                else:
                    continue  # without a gradient so far
                if self.world.rank == 0:
                    whole[f"{key}.{name}"] = moment.cpu()
        if self.world.rank == 0:
            if base.state:
                whole["step"] = next(iter(base.state.values()))["step"]
            # Copies: ZeRO keeps all weights in one buffer, of which safetensors would refuse a part.
            save_file({name: tensor.detach().to("cpu", copy=True) for name, tensor in whole.items()}, folder / ENGINE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, before the first step. All ranks must call it.

        Raises:
            CheckpointError: The file is not there, or not of this objective.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        base, zero = self._adamw(), self._engine.zero_optimization()
        assert not base.state, "a checkpoint is loaded before the first step"
        if not (folder / ENGINE).is_file():
            raise CheckpointError(f"{folder / ENGINE} is missing: another version of ecgfm wrote {folder}")
        with safe_open(folder / ENGINE, framework="pt") as file:
            names = set(file.keys())
            model = {name[6:]: file.get_tensor(name) for name in names if name.startswith("model.")}
            try:
                self.objective.load_state_dict(model)
            except RuntimeError as error:
                raise CheckpointError(f"{folder / ENGINE} is not of this objective: {error}") from error
            if zero:
                self._engine.optimizer.refresh_fp32_params()
            if "step" not in names:
                return
            step = file.get_tensor("step")
            # Under ZeRO AdamW knows this rank's piece of each group, one flat tensor, and DeepSpeed which weight is
            # where in it.
            for weight in [weight for group in base.param_groups for weight in group["params"]]:
                base.state[weight] = {"step": step.to(weight.device, copy=True)}
                base.state[weight] |= {key: torch.zeros_like(weight) for key in MOMENTS}
            self._link()
            for name, weight in self._trained():
                for key in MOMENTS:
                    if f"{key}.{name}" not in names:
                        if not zero:
                            base.state.pop(weight, None)
                        continue
                    moment = file.get_tensor(f"{key}.{name}").to(weight.device)
                    if zero:
                        safe_set_full_optimizer_state(weight, moment, key)
                    else:
                        base.state[weight][key].copy_(moment)

    def _adamw(self) -> torch.optim.Optimizer:
        """Return torch's optimizer, which ZeRO wraps and stage 0 does not."""
        optimizer = self._engine.optimizer
        base: torch.optim.Optimizer = optimizer.optimizer if self._engine.zero_optimization() else optimizer
        return base

    def _link(self) -> None:
        """Tell ZeRO where AdamW's averages of each weight are, before it is asked for them."""
        if self._engine.zero_optimization() and self._adamw().state:
            # DeepSpeed 0.19.8 does it after the step of the first of our two groups, when the second has none, and
            # never again.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.objective.named_parameters() if weight.requires_grad]
