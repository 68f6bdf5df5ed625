"""DeepSpeed, and nothing of it outside this file and checkpoint.py.

One engine holds the objective in float32; bfloat16 is torch's autocast over it, so that the moving average
of a target encoder is a plain float32 lerp on every rank under ZeRO 0 to 2.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import distributed_c10d

from ecgfm import config as settings
from ecgfm.data.batch import Batch
from ecgfm.errors import CheckpointError, ConfigError, RankError
from ecgfm.objectives.base import Losses, Objective, Progress

ENGINE = "engine.safetensors"
"""Weights, AdamW's averages and their step, whole, whatever the ranks and the ZeRO stage were."""
MOMENTS = ("exp_avg", "exp_avg_sq")
RENDEZVOUS = timedelta(minutes=30)
"""How long the first rank waits for the last to start."""
ALONE = timedelta(days=1)
"""How long the ranks wait for what one of them does alone before training, such as reading all shards."""
ROLL_CALL_S = 10
"""Seconds in which a rank that still runs answers, when another is missing."""
OURS = ("train_batch_size", "optimizer", "scheduler", "fp16", "bf16", "bfloat16", "amp", "elasticity", "checkpoint")
"""Keys of DeepSpeed's configuration that --engine.extra may not have, besides those that are written here."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is spread over devices, and in which precision."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 keeps all on every rank, 1 splits the optimizer's state, 2 the gradients too."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """bfloat16 is autocast over float32 weights."""
    accumulation: int = 1
    """Micro-batches whose gradients make one optimizer step."""
    timeout_min: float = 5.0
    """Minutes after which a rank that hangs ends the run, which takes up to one more. It must be more than the slowest
    checkpoint or compilation takes: the other ranks wait for those too."""
    extra: Path | None = None
    """JSON file of further DeepSpeed settings, such as {"zero_optimization": {"overlap_comm": true}}."""

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ConfigError(f"--engine.accumulation must be at least 1, got {self.accumulation}")
        if not 0 < self.timeout_min <= ALONE / timedelta(minutes=1):
            raise ConfigError(f"--engine.timeout-min must be above 0 and at most a day, got {self.timeout_min}")
        if self.zero_stage == 3:
            why = "a target encoder's moving average needs whole weights on every rank, and stage 3 leaves none there"
            if self.precision == "bfloat16":
                why = f"under bfloat16 autocast it does not go on from a checkpoint to the same losses, and {why}"
            raise ConfigError(f"--engine.zero-stage 3 is not offered: {why}; use 2")


@dataclass
class World:
    """This process among all of the run."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup
    """A group on the CPU, for flags that must not make a device wait."""
    patient: dist.ProcessGroup
    """A group on the CPU that waits for a day."""
    roll_call: dist.ProcessGroup
    """A group on the CPU that is used once, when a rank is missing."""
    hosts: tuple[str, ...]
    """The machine of each rank."""
    step: int = 0
    """The step that is being done, for messages."""

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

    def agree(self, error: Exception | None, *, patient: bool = False) -> None:
        """Raise on every rank when one has failed, so that none waits for it. All ranks must call it.

        Args:
            error: What went wrong on this rank.
            patient: One rank was busy alone, which may have taken longer than `--engine.timeout-min`.
        """
        messages: list[str | None] = [None] * self.size
        group = self.patient if patient else self.control
        dist.all_gather_object(messages, str(error) if error else None, group=group)
        if error:
            raise error
        for rank, message in enumerate(messages):
            if message:
                raise CheckpointError(f"rank {rank}: {message}")

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)

    @contextlib.contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Turn what a collective says when a rank is gone into who is gone, where and when. All ranks must enter it.

        Raises:
            RankError: A rank ended, died, or hung for longer than `--engine.timeout-min`.
        """
        try:
            yield
        except RuntimeError as error:
            if not lost_rank(error):
                raise
            raise RankError(f"{self._roll_call()}; the same command goes on from the last checkpoint") from error

    def _roll_call(self) -> str:
        here = f"seen by rank {self.rank} on {self.hosts[self.rank]} in step {self.step + 1:,}"
        # The first rank asks, and ends. The others wait for as long as their group does, whatever they say here: twice
        # that time, so that they see it end unless it is the one.
        wait = timedelta(seconds=ROLL_CALL_S)
        try:
            dist.monitored_barrier(group=self.roll_call, timeout=wait, wait_all_ranks=True)
        except RuntimeError as error:
            if found := re.search(r"Ranks ([\d, ]+) failed to pass", str(error)):
                ranks = [int(rank) for rank in found[1].split(",")]
                listed = ", ".join(f"rank {rank} on {self.hosts[rank]}" for rank in ranks)
                return f"{listed} hangs: no answer for --engine.timeout-min and {ROLL_CALL_S} s more, {here}"
            if "Timed out" in str(error):
                return f"rank 0 on {self.hosts[0]} hangs: no answer for --engine.timeout-min and more, {here}"
            return f"a rank ended or died, {here}; its own message or the launcher's says which"
        return f"a rank was late by more than --engine.timeout-min, and all answer now, {here}"


def lost_rank(error: BaseException) -> bool:
    """Tell whether an error is a collective's that waits for a rank in vain, and not this rank's own."""
    return isinstance(error, dist.DistBackendError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def start_world(timeout_min: float) -> World:
    """Join the other ranks; a process that no launcher started is a world of its own.

    The deepspeed launcher and torchrun say who we are through RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT.

    Args:
        timeout_min: Minutes that a collective waits for a rank.
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
    timeout = timedelta(minutes=timeout_min)
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=max(timeout, RENDEZVOUS))
    # ZeRO makes its groups without a timeout of its own, and init_distributed's does not reach them. NCCL ends the
    # process when its time is over: a little later than the control group, which can say who is missing.
    distributed_c10d.default_pg_timeout = timeout
    distributed_c10d.default_pg_nccl_timeout = (  # type: ignore[attr-defined]
        timeout + timedelta(seconds=3 * ROLL_CALL_S)
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    patient = dist.new_group(backend="gloo", timeout=ALONE)
    roll_call = dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * ROLL_CALL_S))
    assert isinstance(control, dist.ProcessGroup) and isinstance(patient, dist.ProcessGroup)
    assert isinstance(roll_call, dist.ProcessGroup)
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname(), group=patient)
    return World(
        rank=dist.get_rank(),
        size=len(hosts),
        device=device,
        control=control,
        patient=patient,
        roll_call=roll_call,
        hosts=tuple(hosts),
    )


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


def deepspeed_settings(config: EngineConfig, *, micro_batch_size: int, clip_norm: float | None) -> dict[str, Any]:
    """Return the DeepSpeed configuration of an engine.

    Raises:
        ConfigError: `config.extra` cannot be read, or sets what is set here.
    """
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": config.precision == "bfloat16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    return _merge(ours, read_extra(config), config.extra)


def read_extra(config: EngineConfig) -> dict[str, Any]:
    """Return the content of --engine.extra, empty without one.

    Raises:
        ConfigError: It cannot be read, or has a key that is not for it.
    """
    if config.extra is None:
        return {}
    content = settings.read_json(config.extra)
    if not isinstance(content, dict):
        raise ConfigError(f"--engine.extra {config.extra} must hold a JSON object, as DeepSpeed's configuration is")
    for key in OURS:
        if key in content:
            raise ConfigError(f"--engine.extra {config.extra} sets {key!r}, which ecgfm decides; remove it")
    return content


def _merge(ours: dict[str, Any], extra: dict[str, Any], source: Path | None, where: str = "") -> dict[str, Any]:
    """Return both, one within the other."""
    merged = dict(ours)
    for key, value in extra.items():
        name = f"{where}{key}"
        if isinstance(ours.get(key), dict) and isinstance(value, dict):
            merged[key] = _merge(ours[key], value, source, f"{name}.")
        elif key in ours:
            raise ConfigError(f"--engine.extra {source} sets {name!r}, which ecgfm sets itself; remove it")
        else:
            merged[key] = value
    return merged
