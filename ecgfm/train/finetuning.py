"""The command line of recipes/finetune.py and recipes/probe.py: one run in a folder at a time; signals save."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from ecgfm.eval.finetune import finetune
from ecgfm.eval.finetune_config import Finetune, command_line, require_told
from ecgfm.train.lock import RunLock
from ecgfm.train.stop import EX_INTERRUPTED, EX_REQUEUE, stopping


def run(default: Finetune, presets: Mapping[str, Finetune]) -> None:
    """Read the command line and run. A run that was told to stop has saved, and ends the process with 85 or 130.

    Raises:
        EcgfmError: Settings, shards, encoder or folder are at fault.
    """
    settings = command_line(default, presets, sys.argv[1:])
    require_told(settings)
    lock = RunLock(settings.out)
    # One process of those that `accelerate launch` starts stands for all.
    if os.environ.get("RANK", "0") == "0" and (fault := lock.take()):
        raise fault
    try:
        with stopping() as stop:
            finished = finetune(settings, stop.reason)
            stop.status = 0 if finished else EX_INTERRUPTED if stop.interrupted() else EX_REQUEUE
    finally:
        lock.release()
    if stop.status:
        print(f"stopped by {stop.reason() or 'another process'}; the same command goes on", flush=True)
        sys.exit(stop.status)
