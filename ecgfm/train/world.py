"""The ranks of a run: who they are, what they agree on, and what is said when one is missing."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from ecgfm.errors import CheckpointError, ConfigError, RankError
from ecgfm.train.lifeline import SAID, How, Lifeline

T = TypeVar("T")
Answer = Callable[[], bool]
"""Waits for what was asked of all ranks."""
RENDEZVOUS = timedelta(minutes=30)
"""How long the first rank waits for the last to start."""
ALONE = timedelta(days=1)
"""How long the ranks wait for what one of them does alone before training, such as reading all shards."""
ROLL_CALL_S = 10
"""Seconds in which a rank that still runs answers, when another is missing."""
NEWS_S = 2
"""Seconds in which the news of a rank that is gone has reached all others."""


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
    lifeline: Lifeline | None = None
    """Says who is gone; a single rank has none."""
    step: int = 0
    """The step that is being done, for messages."""

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set on any rank. All ranks must call it."""
        return self.begin_any(flag)()

    def begin_any(self, flag: bool) -> Answer:
        """Ask whether a flag is set on any rank, and return what waits for the answer. All ranks must call both.

        The question goes around the ring of N ranks twice, 2 (N - 1) messages one after another, some milliseconds on
        many nodes: between the two calls there should be something else to do.
        """
        value = torch.tensor(int(flag))
        asked = dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control, async_op=True)
        assert asked is not None, "every rank is in the group"

        def answer() -> bool:
            asked.wait()
            return bool(value.item())

        return answer

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

    def from_first(self, value: T) -> T:
        """Return rank 0's value on every rank, however long it was busy alone. All ranks must call it."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.patient)
        return values[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)

    @contextlib.contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Turn what a collective says when a rank is gone into who is gone, where and when. All ranks must enter it.

        Raises:
            RankError: A rank ended, died, or hung for longer than `--engine.timeout-min`.
        """
        how, culprit = How.FAILED, self.rank
        try:
            yield
            how = How.FINISHED
        except SystemExit:
            how = How.FINISHED
            raise
        except RuntimeError as error:
            if not lost_rank(error):
                raise
            who = self.lifeline.lost(NEWS_S) if self.lifeline else None
            if who is None:
                who, silent = self._roll_call()
                if silent is not None:
                    how, culprit = How.SILENT, silent
            here = f"seen by rank {self.rank} on {self.hosts[self.rank]} in step {self.step + 1:,}"
            raise RankError(f"{who}, {here}; the same command goes on from the last checkpoint") from error
        finally:
            if self.lifeline:
                self.lifeline.leave(how, culprit)

    def _roll_call(self) -> tuple[str, int | None]:
        """Return who does not answer, and the first of them."""
        # The first rank asks, and ends. The others wait for as long as their group does, whatever they say here: twice
        # that time, so that they see it end unless it is the one.
        wait = timedelta(seconds=ROLL_CALL_S)
        patience = f"no answer for --engine.timeout-min and {ROLL_CALL_S} s more"
        try:
            dist.monitored_barrier(group=self.roll_call, timeout=wait, wait_all_ranks=True)
        except RuntimeError as error:
            if found := re.search(r"Ranks ([\d, ]+) failed to pass", str(error)):
                ranks = [int(rank) for rank in found[1].split(",")]
                listed = ", ".join(f"rank {rank} on {self.hosts[rank]}" for rank in ranks)
                return f"{listed} {SAID[How.SILENT]} ({patience})", ranks[0]
            if "Timed out" in str(error):
                return f"rank 0 on {self.hosts[0]} {SAID[How.SILENT]} ({patience})", 0
            heard = self.lifeline.lost(NEWS_S) if self.lifeline else None
            return heard or "a rank is gone, and the message of rank 0 or of the launcher says which", None
        return "a rank was late by more than --engine.timeout-min, and all answer now", None


def lost_rank(error: BaseException) -> bool:
    """Tell whether an error is a collective's that waits for a rank in vain, and not this rank's own."""
    return isinstance(error, dist.DistBackendError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def has_gpu() -> bool:
    """Tell whether this machine has a GPU, and DeepSpeed is not told to leave it alone."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def start_world(timeout_min: float) -> World:
    """Join the other ranks; a process that no launcher started is a world of its own.

    The deepspeed launcher and torchrun say who we are through RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT.

    Args:
        timeout_min: Minutes that a collective waits for a rank.

    Raises:
        ConfigError: torchrun was told to start ranks again in a way that does not work.
    """
    check_restarts(os.environ)
    alone = "RANK" not in os.environ
    if alone:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = has_gpu()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            # Ranks that each take all cores get in each other's way.
            ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
    deepspeed = import_deepspeed()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
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
        lifeline=Lifeline(tuple(hosts)) if len(hosts) > 1 else None,
    )


def check_restarts(environment: Mapping[str, str]) -> None:
    """Refuse ways of torchrun in which ranks that are started again never find each other.

    By default its ranks meet in a store that outlives them, and read there the addresses of the dead (torch 2.15).

    Raises:
        ConfigError: --max-restarts without what it needs.
    """
    if int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        return
    if environment.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        raise ConfigError(
            "torchrun --max-restarts starts ranks that find only the dead ones' addresses: put "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before the command"
        )
    if environment.get("TORCHELASTIC_RUN_ID", "none") == "none":
        raise ConfigError(
            "torchrun --max-restarts hangs at the first restart with the default rendezvous: add --standalone on one "
            "node, or --rdzv-backend c10d --rdzv-id NAME --rdzv-endpoint HOST:PORT on several"
        )


def end_world() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def import_deepspeed() -> Any:
    """Import DeepSpeed without its chatter, and without the operator that it would compile on a CPU."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import logging

    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU init_distributed compiles a shared-memory operator for 40 seconds; gloo serves without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
