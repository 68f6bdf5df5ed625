"""Two machines for real, with sshd, address and hostname of their own: pdsh, torchrun, a cut cable, a dead node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import skip_without

SCRIPT = Path(__file__).with_name("nodes.sh")
ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
Start = Callable[..., "subprocess.Popen[str]"]
# 12 s are waited for a rank, and some more until all have been asked.
LONG = ["--optim.schedule-steps", str(STEPS), "--checkpoint-every", "10", "--engine.timeout-min", "0.2"]


class Nodes:
    """node1 and node2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, action: str, *words: str) -> None:
        """Do one of the script's actions."""
        done = subprocess.run([SCRIPT, action, self.folder, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{action}: {done.stdout}{done.stderr}"

    def start(self, node: str, log: Path, *words: str | Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on a node, from the project's folder."""
        bin = Path(sys.executable).parent
        fixed = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{bin}:{os.environ['PATH']}:/usr/sbin"}
        fixed["PDSH_SSH_ARGS_APPEND"] = f"-F {self.folder / 'ssh_config'}"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [SCRIPT, "run", self.folder, node, *map(str, words)],
                cwd=ROOT,
                env={**os.environ, **fixed, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.started.append(process)
        return process

    def torchrun(self, node: str, log: Path, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start a node's half of a run, as the README says."""
        launch = "torchrun --nnodes 2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-id jepa"
        launch += " --rdzv-endpoint node1:29500 --rdzv-conf join_timeout=3600,read_timeout=3600"
        return self.start(node, log, *launch.split(), *words, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Return two nodes and remove them afterwards, or skip, saying what they need."""
    skip_without(("ip", "sshd", "pdsh", "nsenter"), "iproute2, openssh-server and pdsh")
    folder = Path(tempfile.mkdtemp(prefix="ecgfm-nodes-"))
    two = Nodes(folder)
    try:
        two("up")
        yield two
    finally:
        subprocess.run([SCRIPT, "down", folder], check=False)
        for process in two.started:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start_recipe: Start, tiny: list[str]) -> Path:
    """Return a run of two ranks on one machine."""
    folder = tmp_path_factory.mktemp("whole")
    words = [*tiny, "--optim.schedule-steps", str(STEPS), "--out", folder / "run"]
    assert start_recipe(2, *words, log=folder / "log").wait(timeout=300) == 0, (folder / "log").read_text()[-3000:]
    return folder / "run"


def wait_until(there: Callable[[], bool], logs: Path, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "".join(path.read_text()[-3000:] for path in sorted(logs.glob("*.log")))
        time.sleep(0.1)


def wait_for_words(words: str, log: Path) -> None:
    wait_until(lambda: words in log.read_text(), log.parent, seconds=90)


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_deepspeed_over_pdsh_gives_the_losses_of_two_ranks_on_one_machine(
    tmp_path: Path, nodes: Nodes, whole: Path, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    log, hostfile = tmp_path / "node1.log", tmp_path / "hostfile"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    launch: list[str | Path] = ["deepspeed", "--hostfile", hostfile, "--master_addr", "10.77.0.1", "--no_ssh_check"]
    words: list[str | Path] = [*tiny, *LONG, "--steps", "20", "--out", tmp_path / "run"]
    assert nodes.start("node1", log, *launch, "recipes/jepa_vit.py", *words).wait(timeout=240) == 0, log.read_text()
    text = log.read_text()
    assert "2 ranks" in text and "node2: " in text
    assert losses(tmp_path / "run") == losses(whole)[:20]


def test_a_node_that_is_cut_off_or_dies_is_named_and_the_run_goes_on_when_it_is_back(
    tmp_path: Path, nodes: Nodes, whole: Path, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    run, first, second = tmp_path / "run", tmp_path / "node1.log", tmp_path / "node2.log"
    words: list[str | Path] = ["recipes/jepa_vit.py", *tiny, *LONG, "--out", run]
    agent = nodes.torchrun("node1", first, *words)
    nodes.torchrun("node2", second, *words)
    wait_until(lambda: steps(run) >= 15, tmp_path)
    nodes("cut")
    # Which of the nodes has rank 0 is torchrun's choice; each names the other.
    for log, other in ((first, "node2"), (second, "node1")):
        wait_for_words(f"on {other} does not answer: it hangs, or its machine is cut off", log)
    stopped = steps(run)
    nodes("join")
    wait_until(lambda: "going on from step" in first.read_text() + second.read_text(), tmp_path)
    wait_until(lambda: steps(run) >= stopped + 15, tmp_path)
    nodes("kill", "node2")
    wait_for_words("on node2 ended without a word", first)
    assert steps(run) < STEPS, "it came to its end before the node was killed"
    nodes.torchrun("node2", second, *words)
    assert agent.wait(timeout=240) == 0, first.read_text()[-3000:]
    assert losses(run) == losses(whole)
