"""Measure ECGEncoder.embed: how long one record takes, and how many records a second a batch gives.

    python tools/bench_embed.py --size s
    python tools/bench_embed.py --size s --device cuda --batch-size 512

The baseline is the eager forward of the encoder in float32 on tensors that are there already, a record at a time or
the whole batch at once. embed() does besides: leads by name, unit, checks of what it is given, windows, resampling
where the record has another rate, and the copy to the device. On a GPU it is measured with weights of 16 bits as well,
as `encoder.bfloat16()` makes them. All are measured in turn and the best of some rounds counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from bench_rows import Row, best, device_of, show  # type: ignore[import-not-found]
from numpy.typing import NDArray

from ecgfm import config
from ecgfm.encoders import vit
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.leads import LEADS
from ecgfm.rng import generator
from ecgfm.signal.contract import SignalContract

SIZES = {"xs": vit.XS, "s": vit.S, "b": vit.B}
CONTRACT = SignalContract(
    rate_hz=500.0, leads=LEADS, mean_mv=(0.0,) * 12, std_mv=(0.2,) * 12, clip=5.0, window_samples=5000
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure ECGEncoder.embed."""

    size: Literal["xs", "s", "b"] = "xs"
    """Of the vision transformer."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""
    batch_size: int | None = None
    """Records at once; 32 on a CPU, 512 on a GPU."""
    repeats: int = 5
    """Rounds; the best counts."""
    out: Path | None = None
    """Write the rows to this file too, as JSON."""


def main() -> None:
    """Print ratios and aims."""
    settings = tyro.cli(Bench, description=__doc__)
    device = device_of(settings.device)
    show(measure(settings, device), f"embed on {device}, {torch.get_num_threads()} threads", settings.out)


def measure(settings: Bench, device: torch.device) -> list[Row]:
    """Return the rows."""
    number = settings.batch_size or (32 if device.type == "cpu" else 512)
    torch.manual_seed(0)
    wanted = config.to_dict(SIZES[settings.size])
    model = ECGEncoder(encoder=wanted, signal=config.to_dict(CONTRACT)).to(device).eval()
    draw = generator(0, "records to embed")
    records_RLT = draw.normal(0.0, 200.0, (number, len(LEADS), 5000)).astype(np.int16)
    slow_LT = draw.normal(0.0, 200.0, (len(LEADS), 2570)).astype(np.int16)
    ready_RLT = torch.from_numpy(records_RLT * np.float32(1e-3)).to(device)

    def embed(signal: NDArray[np.int16], rate_hz: float = 500.0, model: ECGEncoder = model) -> torch.Tensor:
        return model.embed(signal, rate_hz=rate_hz, leads=LEADS, unit="uV", batch_size=number)

    @torch.no_grad()
    def forward(signal_RLT: torch.Tensor) -> torch.Tensor:
        return model.features(signal_RLT)

    ways: dict[str, Callable[[], object]] = {
        "forward, one": partial(forward, ready_RLT[:1]),
        "embed, one": partial(embed, records_RLT[0]),
        "embed, one of 257 Hz": partial(embed, slow_LT, 257.0),
    }
    took = best(ways, device, settings.repeats)
    several: dict[str, Callable[[], object]] = {
        "forward": partial(forward, ready_RLT),
        "embed": partial(embed, records_RLT),
    }
    if device.type == "cuda":
        half = ECGEncoder(encoder=wanted, signal=config.to_dict(CONTRACT)).to(device).eval().bfloat16()
        several["embed, bfloat16 weights"] = partial(embed, records_RLT, model=half)
    took |= best(several, device, max(settings.repeats // 2, 2))
    name = f"ViT-{settings.size.upper()}"
    rows = [
        Row(
            what=f"{name}: {way}",
            baseline="eager forward of one window",
            ratio=took["forward, one"] / took[way],
            note=f"{(took[way] / took['forward, one'] - 1):.0%} beyond it",
        )
        for way in ("embed, one", "embed, one of 257 Hz")
    ]
    for way in several:
        if way == "forward":
            continue
        aim = 2.0 if "bfloat16" in way else None
        ratio = took["forward"] / took[way]
        rows.append(
            Row(what=f"{name}: {way}, {number} records", baseline="eager float32 forward", ratio=ratio, aim=aim)
        )
    if device.type != "cuda":
        what = f"{name}: embed, 512 records, throughput on a GPU"
        rows.append(Row(what=what, baseline="eager float32 forward", aim=2.0, note="needs a GPU: --device cuda"))
    return rows


if __name__ == "__main__":
    config.run_command(main)
