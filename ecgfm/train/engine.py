"""DeepSpeed, and nothing of it outside this file.

One engine holds the objective in float32; bfloat16 is torch's autocast over it, so that the moving average
of a target encoder is a plain float32 lerp on every rank under ZeRO 0 to 2.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ecgfm.data.batch import Batch
from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.objectives.base import Losses, Objective, Progress

CHECKPOINT_TAG = "engine"
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is spread over devices, and in which precision."""

    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed ZeRO: 0 keeps all on every rank, 1 splits the optimizer's state, 2 the gradients too."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """bfloat16 is autocast over float32 weights."""
    accumulation: int = 1
    """Micro-batches whose gradients make one optimizer step."""

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ConfigError(f"--engine.accumulation must be at least 1, got {self.accumulation}")


@dataclass(frozen=True)
class World:
    """This process among all of the run."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup
    """A group on the CPU, for flags that must not make a device wait."""

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set on any rank. All ranks must call it."""
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value.item())

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over ranks of a vector. All ranks must call it."""
        values = values.detach().double().cpu()
        dist.all_reduce(values, group=self.control)
        return values / self.size

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank when one has failed, so that none waits for it. All ranks must call it."""
        messages: list[str | None] = [None] * self.size
        dist.all_gather_object(messages, str(error) if error else None, group=self.control)
        if error:
            raise error
        for rank, message in enumerate(messages):
            if message:
                raise CheckpointError(f"rank {rank}: {message}")

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)


def start_world() -> World:
    """Join the other ranks; a process that no launcher started is a world of its own.

    The deepspeed launcher and torchrun say who we are through RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT.
    """
    alone = "RANK" not in os.environ
    if alone:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    has_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            # Ranks that each take all cores get in each other's way.
            ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
    deepspeed = _import_deepspeed()
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if has_gpu else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(control, dist.ProcessGroup)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device, control=control)


def end_world() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _import_deepspeed() -> Any:
    """Import DeepSpeed without its chatter, and without the operator that it would compile on a CPU."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import logging

    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU init_distributed compiles a shared-memory operator for 40 seconds; gloo serves without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


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
        self._engine, *_ = _import_deepspeed().initialize(
            model=objective.to(world.device), optimizer=optimizer, config=self.settings
        )
        self.objective = objective

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, whose values the schedules set."""
        groups: list[dict[str, Any]] = self._engine.optimizer.param_groups
        return groups

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Return the losses of a micro-batch. All ranks must call it."""
        losses: Losses = self._engine(batch, at)
        return losses

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's mean loss. All ranks must call it."""
        self._engine.backward(loss)

    def step(self) -> bool:
        """Step the optimizer when all micro-batches are in; tell whether it did. All ranks must call it."""
        complete = bool(self._engine.is_gradient_accumulation_boundary())
        self._engine.step()
        return complete

    def gradient_norm(self) -> float | None:
        """Return the norm of the last step's gradient, where the engine knows it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into a folder. All ranks must call it."""
        self._engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, a pickle of our own run. All ranks must call it.

        Raises:
            CheckpointError: The files are not there, or not of this engine.
        """
        path, _ = self._engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG, load_lr_scheduler_states=False)
        if path is None:
            raise CheckpointError(f"{folder / CHECKPOINT_TAG} holds no state that DeepSpeed can read")


def deepspeed_settings(config: EngineConfig, *, micro_batch_size: int, clip_norm: float | None) -> dict[str, Any]:
    """Return the DeepSpeed configuration of an engine."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": config.precision == "bfloat16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
