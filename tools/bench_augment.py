"""Measure the augmentations, each and all together, on batches of 12-lead windows.

    python tools/bench_augment.py --device cuda

Beside them stand the same transforms in NumPy and SciPy, window by window as a data loader's worker runs them and
collects its batch (short functions in this file, float64 as in the papers' code), and one forward and backward step of
ViT-S on the same batch. The floor of each is a copy of the batch. All figures are of this run; the best of three
counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.signal
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation

from ecgfm import config, parts
from ecgfm.data.augment.base import FOLDER, Augment, Augmenter, View
from ecgfm.data.batch import Draws
from ecgfm.encoders import vit
from ecgfm.encoders.base import build_encoder
from ecgfm.leads import LEADS

Window = NDArray[np.float64]
RATE_HZ = 500.0
INDEPENDENT = [LEADS.index(lead) for lead in ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure windows a second of each augmentation, of all of them, and of a step of ViT-S."""

    device: str = "cpu"
    """Where to compute: cpu or cuda."""
    batch_size: int = 64
    """Windows of a batch; even, so that each has a partner to be mixed with."""
    samples: int = 5000
    """Of a window, at 500 Hz."""
    repeats: int = 5
    """Batches of one measurement."""
    loop: bool = True
    """Also measure NumPy and SciPy, window by window."""
    vit: bool = True
    """Also measure a step of ViT-S: bfloat16 on a GPU; on a CPU float32, of an eighth of the batch, times eight."""


def main() -> None:
    """Print milliseconds a batch and windows a second of each way, and shares of ViT-S's step."""
    settings = tyro.cli(Bench, description=__doc__)
    device, rows = torch.device(settings.device), settings.batch_size
    signal_BLT = torch.randn(rows, len(LEADS), settings.samples, device=device)
    names = parts.names(FOLDER)
    part = 1 if signal_BLT.is_cuda else 8
    step_s = part * measure(vit_step(signal_BLT[::part]), settings, repeats=1) if settings.vit else None
    ways = {"floor: copy of the batch": measure(lambda: signal_BLT.clone(), settings)}
    for name in names:
        ways[name] = measure(view_maker((name,), signal_BLT), settings)
    ways["all together"] = measure(view_maker(names, signal_BLT), settings)
    ways["two picked for each row"] = measure(view_maker(names, signal_BLT, pick=2), settings)
    loops = {name: measure_loop(LOOPS[name], settings) for name in names} if settings.loop else {}
    if settings.loop:
        loops["all together"] = sum(loops.values())
    title = f"{rows} windows of {len(LEADS)} x {settings.samples} on {device}, {torch.get_num_threads()} threads"
    table = Table("augmentation", "ms", "windows/s", "NumPy loop: ms", "ratio", "of ViT-S's step", title=title)
    for name, seconds in ways.items():
        loop_s = loops.get(name)
        table.add_row(
            name,
            f"{seconds * 1e3:.2f}",
            f"{rows / seconds:,.0f}",
            f"{loop_s * 1e3:.0f}" if loop_s else "",
            f"{loop_s / seconds:.1f}" if loop_s else "",
            f"{seconds / step_s:.2%}" if step_s else "",
        )
    if step_s:
        table.add_row("ViT-S, forward and backward", f"{step_s * 1e3:.2f}", f"{rows / step_s:,.0f}", "", "", "100%")
    Console().print(table)


def view_maker(names: tuple[str, ...], signal_BLT: torch.Tensor, pick: int | None = None) -> Callable[[], object]:
    """Return a function that makes another view each time."""
    augmenter = Augmenter(Augment(use=names, pick=pick)).to(signal_BLT.device)
    rows, steps = len(signal_BLT), iter(range(10**9))
    std_mv_BL = torch.full(signal_BLT.shape[:2], 0.2, device=signal_BLT.device)

    def view() -> object:
        draws = Draws(seed=0, step=next(steps), rows=(0, rows), all_rows=rows, device=signal_BLT.device)
        return augmenter(
            signal_BLT,
            View(draws=draws, rate_hz=RATE_HZ, mean_mv_BL=torch.zeros_like(std_mv_BL), std_mv_BL=std_mv_BL),
        )

    return view


def vit_step(signal_BLT: torch.Tensor) -> Callable[[], object]:
    """Return a function that runs ViT-S forward and backward."""
    encoder = build_encoder(vit.S).to(signal_BLT.device)

    def step() -> object:
        encoder.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=signal_BLT.is_cuda):
            loss = encoder(signal_BLT).float().square().mean()
        loss.backward()
        return loss

    return step


def measure(way: Callable[[], object], settings: Bench, repeats: int | None = None) -> float:
    """Return the best mean of three measurements in seconds, after one call that does not count."""
    best, repeats = float("inf"), repeats or settings.repeats
    way()
    for _ in range(3):
        wait(settings)
        start = time.perf_counter()
        for _ in range(repeats):
            way()
        wait(settings)
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def wait(settings: Bench) -> None:
    """Wait until the device has done what it was given."""
    if settings.device != "cpu":
        torch.accelerator.synchronize()


def measure_loop(transform: Callable[[Window, np.random.Generator], Window], settings: Bench) -> float:
    """Return seconds a batch of a loop over windows, from sixteen of them."""
    rng = np.random.default_rng(0)
    windows = rng.normal(0, 0.2, (16, len(LEADS), settings.samples))
    batch = np.empty(windows.shape, dtype=np.float32)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for row, window in enumerate(windows):
            batch[row] = transform(window, rng)
        best = min(best, (time.perf_counter() - start) / len(windows))
    return best * settings.batch_size


def segment(samples: int, share: float, rng: np.random.Generator) -> slice:
    """Return a segment at a random place."""
    length = round(samples * share)
    first = int(rng.integers(0, samples - length + 1))
    return slice(first, first + length)


def gaussian_noise(x: Window, rng: np.random.Generator) -> Window:
    """White noise."""
    return x + rng.normal(0, 0.05, x.shape)


def emg_noise(x: Window, rng: np.random.Generator) -> Window:
    """White noise of a random size in each lead."""
    return x + rng.uniform(0, 0.1, (len(x), 1)) * rng.normal(0, 1, x.shape)


def powerline(x: Window, rng: np.random.Generator) -> Window:
    """A cosine of the mains."""
    time_s = np.arange(x.shape[1]) / RATE_HZ
    hum: Window = rng.uniform(0, 0.5) * np.cos(2 * np.pi * (rng.choice([50, 60]) * time_s + rng.uniform()))
    return x + hum


def baseline_wander(x: Window, rng: np.random.Generator) -> Window:
    """Three slow cosines."""
    time_s = np.arange(x.shape[1]) / RATE_HZ
    cosines = np.cos(2 * np.pi * (rng.uniform(0.01, 0.2, (3, 1)) * time_s + rng.uniform(0, 1, (3, 1))))
    wander: Window = rng.normal(1, 0.5, (len(x), 1)) * (rng.uniform(0, 0.5, (1, 3)) @ cosines)
    return x + wander


def baseline_shift(x: Window, rng: np.random.Generator) -> Window:
    """A shifted segment."""
    y = x.copy()
    y[:, segment(x.shape[1], 0.2, rng)] += rng.choice([-1, 1], (len(x), 1)) * rng.uniform(0, 0.25)
    return y


def gaussian_smoothing(x: Window, rng: np.random.Generator) -> Window:
    """A Gaussian filter."""
    filtered: Window = scipy.ndimage.gaussian_filter1d(x, rng.uniform(1, 5), axis=1, mode="nearest", radius=20)
    return filtered


def time_mask(x: Window, rng: np.random.Generator) -> Window:
    """Hidden samples."""
    return np.where(rng.random(x.shape) < 0.2, 0, x)


def block_mask(x: Window, rng: np.random.Generator) -> Window:
    """A hidden block in each lead."""
    y = x.copy()
    for lead in y:
        lead[np.arange(start := rng.integers(len(lead)), start + len(lead) // 5) % len(lead)] = 0
    return y


def peak_mask(x: Window, rng: np.random.Generator) -> Window:
    """Hidden peaks."""
    mean = x.mean(axis=0)
    return np.where((mean > mean.mean()) ^ (rng.random() < 0.5), 0, x)


def stft_mask(x: Window, rng: np.random.Generator) -> Window:
    """Scaled Fourier coefficients."""
    _, _, spectrum = scipy.signal.stft(x, RATE_HZ, nperseg=999)
    changed: Window = scipy.signal.istft(spectrum * rng.beta(5, 2, spectrum.shape), RATE_HZ, nperseg=999)[1]
    return changed[:, : x.shape[1]]


def random_erasing(x: Window, rng: np.random.Generator) -> Window:
    """An overwritten segment."""
    y = x.copy()
    where = segment(x.shape[1], rng.uniform(0.02, 0.4), rng)
    y[:, where] = rng.normal(0, 1, y[:, where].shape)
    return y


def resizing(x: Window, rng: np.random.Generator) -> Window:
    """Another time axis."""
    samples = x.shape[1]
    stretch = rng.uniform(0.8, 1.25)
    at = rng.uniform() * (samples - 1) * (1 - 1 / stretch) + np.arange(samples) / stretch
    return np.stack([np.interp(at, np.arange(samples), lead, left=0, right=0) for lead in x])


def lead_mask(x: Window, rng: np.random.Generator) -> Window:
    """Hidden leads."""
    return np.where(rng.random((len(x), 1)) < 0.5, 0, x)


def lead_permutation(x: Window, rng: np.random.Generator) -> Window:
    """Leads in another order."""
    return x[rng.permutation(len(x))]


def three_kg(x: Window, rng: np.random.Generator) -> Window:
    """A turned vectorcardiogram; the inverse is computed for each window, as in the papers' code."""
    to_leads = rng.normal(0, 1, (8, 3))
    vector = np.linalg.pinv(to_leads) @ x[INDEPENDENT]
    turned = Rotation.from_euler("zyx", rng.uniform(-45, 45, 3), degrees=True).as_matrix() @ vector
    eight = to_leads @ (rng.uniform(1, 1.5, (3, 1)) * turned)
    one, two = eight[:2]
    return np.concatenate([np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]), eight[2:]])


def mixup(x: Window, rng: np.random.Generator) -> Window:
    """A weighted mean."""
    own = rng.beta(0.2, 0.2)
    return own * x + (1 - own) * x[::-1]


def cutmix(x: Window, rng: np.random.Generator) -> Window:
    """A segment of another window."""
    y, where = x.copy(), segment(x.shape[1], rng.uniform(), rng)
    y[:, where] = x[::-1, where]
    return y


LOOPS: dict[str, Callable[[Window, np.random.Generator], Window]] = {
    transform.__name__: transform
    for transform in (
        *(gaussian_noise, emg_noise, powerline, baseline_wander, baseline_shift, gaussian_smoothing, time_mask),
        *(block_mask, peak_mask, stft_mask, random_erasing, resizing, lead_mask, lead_permutation, three_kg),
        *(mixup, cutmix),
    )
}

if __name__ == "__main__":
    config.run_command(main)
