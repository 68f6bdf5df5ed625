"""Runs recipes' commands one after another, each rank in a process that was forked off this one.

Importing torch and DeepSpeed takes several seconds a process, and is done once here. Each command starts where a new
process would stand after its imports: DeepSpeed keeps groups of ranks that a second run in one process would trip over.

Its input is a JSON object a line: `words`, a script and its arguments; `ranks`, 0 for a process that no launcher
started; `log`, the file that all it says is appended to; and what is to stand in the `environment`, if anything. It
answers each with what the ranks ended with. The fixture `run_ranks` is its other side.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading

PRELOADED = (
    "ecgfm.train.loop",
    "timm.layers",
    "tyro",
    "torch.utils.tensorboard",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)
"""What every run imports, and takes long: the last in deepspeed.initialize, with torch's compiler."""
SECONDS = 240
"""What a command may take."""


def main() -> None:
    """Answer each line."""
    from ecgfm.train.world import import_deepspeed

    import_deepspeed()
    for name in PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a thread would not live on in the processes that are forked"
    for line in sys.stdin:
        print(json.dumps(launch(**json.loads(line))), flush=True)


def launch(words: list[str], ranks: int, log: str, environment: dict[str, str] | None = None) -> list[int]:
    """Run a command on all ranks, and return what they end with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sys.stdout.flush()
    children = []
    for rank in range(max(ranks, 1)):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        child = os.fork()
        if not child:
            os.environ |= (place if ranks else {}) | (environment or {})
            _run(words, log)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _run(words: list[str], log: str) -> None:
    """Run a script as __main__ and end the process, as Python itself would."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.alarm(SECONDS)
    sys.argv = words
    status = 1
    try:
        runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
