"""The figures of a run on another board: Weights & Biases, or CSV files, through DeepSpeed's monitor.

Only rank 0 has one. We hand it the figures of metrics.jsonl: no settings, no paths, no records. What wandb gathers by
itself is its own: we switch off that it copies the console, the source and what git says of it (set WANDB_CONSOLE,
WANDB_DISABLE_CODE or WANDB_DISABLE_GIT to have them), and it still notes host and command line. Keys stay with wandb's
own variables and files (`wandb login`, WANDB_API_KEY); there is no setting that holds one. `WANDB_MODE=offline` needs
no network: `wandb sync` sends it later.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfm.errors import ConfigError
from ecgfm.train.world import import_deepspeed


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Boards beside TensorBoard, and what figures are compared with. They change no weight."""

    wandb: str | None = None
    """Project of Weights & Biases to send the figures to; needs `pip install wandb`, and a login or
    WANDB_MODE=offline."""
    wandb_team: str | None = None
    """Team (entity) that the project belongs to."""
    wandb_group: str | None = None
    """Group that the run is put into; the name of the run's folder by default, so that its restarts stand together."""
    csv: bool = False
    """Also write a CSV file for each figure, into the run's folder `csv`."""
    peak_tflops: float | None = None
    """Peak of one device in 10^12 operations a second, of which `mfu` is the share that the model's operations take;
    by default the dense bfloat16 peak of a known GPU."""

    def __post_init__(self) -> None:
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ConfigError(f"--monitor.peak-tflops must be above 0, got {self.peak_tflops}")
        if self.wandb == "":
            raise ConfigError("--monitor.wandb needs the name of a project")
        if (self.wandb_team or self.wandb_group) and not self.wandb:
            raise ConfigError("--monitor.wandb-team and -group are for --monitor.wandb PROJECT, which is missing")


def check_monitor(config: MonitorConfig) -> None:
    """Refuse a board that cannot be had.

    Raises:
        ConfigError: Its library is not installed.
    """
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(f"--monitor.wandb {config.wandb}: wandb is not installed; pip install wandb")


class Monitor:
    """Sends figures to the boards that were asked for.

    Args:
        config: Which.
        run: Folder of the run.

    Raises:
        ConfigError: Weights & Biases does not let us in.
    """

    def __init__(self, config: MonitorConfig, run: Path) -> None:
        self._master: Any = None
        boards: dict[str, dict[str, Any]] = {}
        if config.wandb:
            group = config.wandb_group or run.resolve().name
            boards["wandb"] = {"enabled": True, "project": config.wandb, "team": config.wandb_team, "group": group}
            quiet = {"DIR": str(run.resolve()), "CONSOLE": "off", "DISABLE_CODE": "true", "DISABLE_GIT": "true"}
            for name, value in quiet.items():
                os.environ.setdefault(f"WANDB_{name}", value)
        if config.csv:
            boards["csv_monitor"] = {"enabled": True, "output_path": str(run), "job_name": "csv"}
        if not boards:
            return
        import_deepspeed()
        from deepspeed.monitor.config import get_monitor_config
        from deepspeed.monitor.monitor import MonitorMaster

        config_of_boards = get_monitor_config(boards)
        if not config.wandb:
            self._master = MonitorMaster(config_of_boards)
            return
        refused: type[Exception] = importlib.import_module("wandb").Error
        try:
            self._master = MonitorMaster(config_of_boards)
        except refused as error:
            raise ConfigError(
                f"--monitor.wandb {config.wandb}: {error}; run `wandb login`, or set WANDB_MODE=offline"
            ) from error

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Send a logged step's figures."""
        if self._master:
            self._master.write_events([(name, value, step) for name, value in figures.items()])
