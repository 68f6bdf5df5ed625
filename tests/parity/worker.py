"""One rank of a launch that trains many small runs, one after another, in one process group.

python tests/parity/worker.py JOBS, where JOBS is a JSON list of the recipe's command lines.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import torch_autocast
from deepspeed.runtime.engine import DeepSpeedEngine

from ecgfm.config import cli
from ecgfm.encoders import vit
from ecgfm.objectives.jepa import JEPA
from ecgfm.train import loop
from ecgfm.train.lifeline import How
from ecgfm.train.run import Run
from ecgfm.train.world import end_world, start_world


def main(jobs: Path) -> None:
    # No lifeline: the first run's end would be taken for the last one's.
    started = start_world(5.0)
    world = dataclasses.replace(started, lifeline=None)
    compile_for_real = DeepSpeedEngine.compile

    def trace(engine: Any, backend: str, compile_kwargs: dict[str, Any]) -> None:
        # Graphs are taken and differentiated as always, and run by torch: making code of them takes minutes.
        assert (backend, compile_kwargs) == ("inductor", {})
        compile_for_real(engine, backend="aot_eager")

    replaced: dict[Any, dict[str, Any]] = {
        loop: {
            "start_world": lambda *_, **__: world,
            "end_world": lambda: None,
            # DeepSpeed refuses float16 on a CPU, where it is slow and no less right.
            "check_device": lambda *_, **__: None,
        },
        get_accelerator(): {"is_fp16_supported": lambda: True},
        DeepSpeedEngine: {"compile": trace},
    }
    for owner, names in replaced.items():
        for name, value in names.items():
            assert hasattr(owner, name)
            setattr(owner, name, value)
    for words in json.loads(jobs.read_text()):
        # What DeepSpeed remembers of an engine with autocast.
        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
        loop.train(cli(Run(encoder=vit.XS, objective=JEPA.Config()), args=words))
    if started.lifeline:
        started.lifeline.leave(How.FINISHED, started.rank)
    end_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
