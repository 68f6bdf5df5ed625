"""The rows of tools/torture.py: what is done to a run, and what must come of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ecgfm.errors import ConfigError
from ecgfm.run_folder import CHECKPOINTS, read_metrics

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "jepa_vit.py"
STEPS = 200
EVERY = 10
"""Steps from checkpoint to checkpoint."""
PATIENCE_S = 300
"""A run that has not ended by then is stuck."""
SMALL = (
    "--data.batch-size 8 --encoder.width 32 --encoder.depth 2 --encoder.num-heads 2 --encoder.patch-samples 100 "
    f"--objective.min-block 4 --optim.schedule-steps {STEPS} --log-every 1 --checkpoint-every {EVERY}"
)


class Victim:
    """A run that can be started, watched and hurt."""

    def __init__(self, folder: Path, shards: Path, case: Case, moment: int) -> None:
        self.folder, self.shards, self.case, self.moment = folder, shards, case, moment
        self.run, self.log = folder / "run", folder / "log"
        self.recipe = RECIPE
        folder.mkdir(parents=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command, always the same but for the port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = [*SMALL.split(), "--data.shards", str(self.shards), "--out", str(self.run), *self.case.words]
        tools = Path(sys.executable).parent
        if self.case.restarts:
            launcher = [str(tools / "torchrun"), "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
        else:
            launcher = [str(tools / "deepspeed"), "--num_accelerators", "2", "--master_port", port]
        fixed = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        # Without it torch starts nothing again.
        fixed["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, str(self.recipe), *words],
                cwd=ROOT,
                env=os.environ | fixed,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def processes(self) -> Iterator[tuple[int, str | None]]:
        """Yield what runs of it: process and rank, which the launchers have none of."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.run).encode() not in (folder / "cmdline").read_bytes():
                    continue
                ranks = [word[5:] for word in (folder / "environ").read_bytes().split(b"\0") if word[:5] == b"RANK="]
            except OSError:  # it ended meanwhile
                continue
            yield int(folder.name), ranks[0].decode() if ranks else None

    def rank(self, rank: int) -> int:
        """Return the process of a rank."""
        return next(process for process, name in self.processes() if name == str(rank))

    def second_launcher(self) -> int:
        """Return the process between the command and the ranks."""
        return next(process for process, rank in self.processes() if rank is None and process != self.process.pid)

    def steps(self) -> int:
        """Return the last step that was logged."""
        lines = read_metrics(self.run)
        return int(lines[-1]["step"]) if lines else 0

    def wait_for_moment(self) -> None:
        """Wait until the run has done as many steps as the row says."""
        until = time.monotonic() + PATIENCE_S
        while self.steps() < self.moment:
            if self.process.poll() is not None or time.monotonic() > until:
                raise ConfigError(f"the run did not come to step {self.moment}: see {self.log}")
            time.sleep(0.02)

    def end(self) -> int | None:
        """Wait for the command and all of its ranks; return its status, or None for one that had to be killed."""
        until = time.monotonic() + PATIENCE_S
        stuck = True
        while time.monotonic() < until and stuck:
            stuck = self.process.poll() is None or any(True for _ in self.processes())
            time.sleep(0.05)
        self.kill_all()
        status = self.process.wait()
        return None if stuck else status

    def kill_all(self) -> None:
        """Kill the launchers and the ranks at once."""
        for process, _ in list(self.processes()):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:  # it ended by itself
                continue

    def checkpoint(self) -> Path:
        """Return the newest checkpoint."""
        return max(path for path in (self.run / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name))

    def shard(self) -> Path:
        """Return a shard that is in use."""
        return min(self.shards.glob("*.tar"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way to hurt a run, and what must come of it."""

    what: str
    hurt: Callable[[Victim], None]
    """Called when the moment has come."""
    says: str
    """A pattern that the output must hold, in either start."""
    status: tuple[int, ...]
    """How the command may end; a negative number is a signal."""
    lost: int
    """Most steps that are done again."""
    words: tuple[str, ...] = ()
    """More settings."""
    heal: Callable[[Victim], None] = lambda victim: None
    """Called before the second start."""
    own_shards: bool = False
    """Works on shards of its own."""
    restarts: bool = False
    """Under torchrun, which starts it again by itself."""
    prepare: Callable[[Victim], None] = lambda victim: None
    """Called before the first start."""


def kill_rank(rank: int, number: signal.Signals = signal.SIGKILL) -> Callable[[Victim], None]:
    """Return a function that sends a signal to a rank."""
    return lambda victim: os.kill(victim.rank(rank), number)


def killed_with(what: str, damage: Callable[[Path], None]) -> Case:
    """Return the row in which a run is killed and a file of its newest checkpoint damaged."""

    def hurt(victim: Victim) -> None:
        victim.kill_all()
        victim.process.wait()
        damage(victim.checkpoint())

    return Case(what=f"killed, and {what}", hurt=hurt, says=FELL_BACK, status=(-9,), lost=SINCE_LAST + EVERY)


def cut(path: Path) -> None:
    """Cut a file to half its length."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change a byte in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def fill(victim: Victim) -> None:
    """Write to a disk until it is full."""
    with (victim.run / "other-data").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return


def delete_shard(victim: Victim) -> None:
    """Take a shard away."""
    victim.shard().rename(victim.folder / "shard")


def cut_shard(victim: Victim) -> None:
    """Cut a shard to half its length, in place."""
    shutil.copy(victim.shard(), victim.folder / "shard")
    cut(victim.shard())


def put_back(victim: Victim) -> None:
    """Restore the shard that was hurt."""
    shutil.copy(victim.folder / "shard", victim.shards / "synthetic-all-000000.tar")


def mount(victim: Victim) -> None:
    """Put a small disk in memory under the run."""
    victim.run.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(victim.run)]
    subprocess.run(words, check=True, capture_output=True)


def break_loader(victim: Victim) -> None:
    """Make a recipe in which a disk gives an error to rank 1, once."""
    victim.recipe = victim.folder / "recipe.py"
    victim.recipe.write_text(
        BROKEN.format(moment=victim.moment * 8, once=str(victim.folder / "once"), recipe=str(RECIPE))
    )


BROKEN = """
import os, runpy
from pathlib import Path
from ecgfm.data import loader
from ecgfm.errors import ShardError
sound, once = loader.Loader.read, Path({once!r})
def read(self, position):
    if os.environ["RANK"] == "1" and position >= {moment} and not once.exists():
        once.touch()
        raise ShardError("synthetic-all-000000.tar cannot be read any longer: Input/output error")
    return sound(self, position)
loader.Loader.read = read
runpy.run_path({recipe!r}, run_name="__main__")
"""

NAMED = r"rank {} on \S+ ended without a word.*in step \d+"
FELL_BACK = "WARNING: .*goes on from the checkpoint before"
# A checkpoint that is being written when the run is killed does not count: twice the distance of two.
SINCE_LAST = 2 * EVERY
CASES = {
    "launcher": Case(
        what="kill -9 of the deepspeed command",
        hurt=lambda victim: victim.process.kill(),
        says=r"stopped at step \d+ by the end of the deepspeed command",
        status=(-9,),
        lost=0,
    ),
    "second-launcher": Case(
        what="kill -9 of its second process",
        hurt=lambda victim: os.kill(victim.second_launcher(), signal.SIGKILL),
        says=r"stopped at step \d+ by the end of the deepspeed command",
        # DeepSpeed's command does not tell that from a good end.
        status=(0, -9, 247),
        lost=0,
    ),
    "rank-0": Case(what="kill -9 of rank 0", hurt=kill_rank(0), says=NAMED.format(0), status=(1, 247), lost=SINCE_LAST),
    "rank-1": Case(what="kill -9 of rank 1", hurt=kill_rank(1), says=NAMED.format(1), status=(1, 247), lost=SINCE_LAST),
    "restarts": Case(
        what="kill -9 of rank 1 under torchrun --max-restarts 1",
        hurt=kill_rank(1),
        says=NAMED.format(1),
        status=(0,),
        lost=SINCE_LAST,
        restarts=True,
    ),
    "all": Case(
        what="kill -9 of everything",
        hurt=Victim.kill_all,
        says="going on from step",
        status=(-9,),
        lost=SINCE_LAST,
    ),
    "loader": Case(
        what="the loader's thread of rank 1 dies of a read error",
        prepare=break_loader,
        hurt=lambda victim: None,
        says="Input/output error",
        status=(1,),
        lost=SINCE_LAST,
    ),
    "hang": Case(
        what="SIGSTOP of rank 1, --engine.timeout-min 0.2",
        hurt=kill_rank(1, signal.SIGSTOP),
        says=r"rank 1 on \S+ does not answer.*in step \d+",
        status=(1,),
        lost=SINCE_LAST,
        words=("--engine.timeout-min", "0.2"),
    ),
    "sigterm": Case(
        what="SIGTERM to the deepspeed command",
        hurt=lambda victim: victim.process.terminate(),
        says=r"stopped at step \d+ by",
        status=(-15, 143),
        lost=0,
    ),
    "sigusr1": Case(
        what="SIGUSR1 to rank 1",
        hurt=kill_rank(1, signal.SIGUSR1),
        says=r"stopped at step \d+ by another rank",
        status=(85,),
        lost=0,
    ),
    "ctrl-c": Case(
        what="Ctrl-C",
        hurt=lambda victim: os.killpg(victim.process.pid, signal.SIGINT),
        says=r"stopped at step \d+ by",
        status=(-2, 130),
        lost=0,
    ),
    "cut-checkpoint": killed_with("the newest checkpoint cut short", lambda folder: cut(folder / "engine.safetensors")),
    "flipped-byte": killed_with(
        "a byte of the newest checkpoint flipped", lambda folder: flip(folder / "engine.safetensors")
    ),
    "empty-state": killed_with(
        "the newest checkpoint's state.json empty", lambda folder: os.truncate(folder / "state.json", 0)
    ),
    "full-disk": Case(
        what="the disk of the run is full",
        prepare=mount,
        hurt=fill,
        says="No space left|free space|MB free",
        status=(1,),
        lost=SINCE_LAST,
        heal=lambda victim: (victim.run / "other-data").unlink(),
    ),
    "deleted-shard": Case(
        what="a shard is deleted",
        hurt=delete_shard,
        # One that is mapped into memory can be read until the run ends.
        says=f"step {STEPS} of {STEPS}",
        status=(0, 1),
        lost=SINCE_LAST,
        heal=put_back,
        own_shards=True,
    ),
    "cut-shard": Case(
        what="a shard is cut short",
        hurt=cut_shard,
        says=r"error.*synthetic-all-000000\.tar",
        status=(1,),
        lost=SINCE_LAST,
        heal=put_back,
        own_shards=True,
    ),
}
