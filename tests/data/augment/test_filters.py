"""Smoothing, the short-time Fourier mask and resizing against SciPy and loops, fed with the same uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ecgfm.data.augment._beta import NODES, beta_quantiles, take_quantiles
from ecgfm.data.augment.base import View, build_augmentation
from ecgfm.data.augment.gaussian_smoothing import GaussianSmoothing
from ecgfm.data.augment.resizing import Resizing
from ecgfm.data.augment.stft_mask import STFTMask
from ecgfm.data.batch import Draws
from ecgfm.errors import ConfigError

Look = Callable[..., View]


def test_smoothing_is_a_convolution_with_a_gaussian_of_the_drawn_width(beats: Tensor, look: Look) -> None:
    view = look()
    changed = build_augmentation(GaussianSmoothing.Config())(beats, view).numpy()
    strength = view.uniform("strength", 1).numpy()[:, 0]
    for row in range(len(beats)):
        sd_samples = (2 + 8 * strength[row]) * 0.5
        # SciPy cuts its kernel at `truncate` of its own standard deviations, ours at 4 of the widest: 20 samples.
        wanted = scipy.ndimage.gaussian_filter1d(
            beats[row].double().numpy(), sd_samples, axis=1, mode="nearest", radius=20
        )
        # A float32 Fourier transform of values up to 6.
        np.testing.assert_allclose(changed[row], wanted, rtol=0, atol=5e-6)


def test_smoothing_keeps_a_constant_and_weakens_a_wave_as_stated(look: Look) -> None:
    constant = torch.full((8, 12, 1000), 3.0)
    smoothing = build_augmentation(GaussianSmoothing.Config(sd_ms=(10.0, 10.0)))
    torch.testing.assert_close(smoothing(constant, look()), constant, atol=1e-5, rtol=0)
    wave = torch.sin(2 * math.pi * 20 * torch.arange(1000) / 500).expand(8, 12, -1)
    left = smoothing(wave, look())[..., 100:-100].abs().max()
    # The kernel ends at 4 standard deviations.
    assert float(left) == pytest.approx(math.exp(-((2 * math.pi * 20 * 0.01) ** 2) / 2), abs=2e-3)


@pytest.mark.parametrize("samples", [1000, 1003, 2499])
@pytest.mark.parametrize("frame", [999, 256])
def test_stft_mask_scales_scipys_coefficients_by_beta_numbers(
    beats: Tensor, look: Look, samples: int, frame: int
) -> None:
    signal = torch.cat([beats, beats.flip(2), beats], dim=2)[:2, :3, :samples]
    view = look(0, 2, leads=3)
    changed = build_augmentation(STFTMask.Config(frame_samples=frame))(signal, view).numpy()
    overlap = frame // 2
    _, _, spectrum = scipy.signal.stft(signal.double().numpy(), 500, nperseg=frame, noverlap=overlap)
    frequencies, frames = spectrum.shape[2:]
    uniform = view.many("factors", 3, frames, frequencies).double().numpy()
    # Quantiles as documented: straight lines between 4097 of them.
    nodes = np.arange(4097) / 4096
    factor = np.interp(uniform, nodes, scipy.stats.beta.ppf(nodes, 5, 2)).swapaxes(2, 3)
    _, wanted = scipy.signal.istft(spectrum * factor, 500, nperseg=frame, noverlap=overlap)
    # Quantiles in float32 near 0 are steep in a number of 24 bits, and the transform rounds.
    np.testing.assert_allclose(changed, wanted[..., :samples], rtol=0, atol=1e-5)


def test_stft_mask_with_factors_of_1_keeps_the_signal(beats: Tensor, look: Look) -> None:
    augmentation = build_augmentation(STFTMask.Config())
    assert isinstance(augmentation, STFTMask)
    augmentation.quantiles.fill_(1.0)
    # Near the ends a window of 0.1 % of its peak is divided by itself.
    torch.testing.assert_close(augmentation(beats, look()), beats, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("a", "b"), [(5.0, 2.0), (0.2, 0.2), (1.0, 1.0), (0.05, 3.0), (40.0, 0.5)])
def test_beta_numbers_have_the_distribution_of_scipy(a: float, b: float) -> None:
    quantiles = beta_quantiles(a, b)
    inner = np.arange(1, NODES) / NODES
    reached = scipy.stats.beta.cdf(quantiles.numpy()[1:-1], a, b)
    # Where quantiles are too near to 1 for float64, their distribution function cannot be told from 1.
    told = quantiles.numpy()[1:-1] < 1 - 1e-12
    np.testing.assert_allclose(reached[told], inner[told], rtol=0, atol=1e-6)
    uniform = torch.linspace(0, 1 - 2**-24, 1001, dtype=torch.float64)
    found = take_quantiles(quantiles, uniform).numpy()
    told = (found < 1 - 1e-12) & (found > 1e-300)
    np.testing.assert_allclose(scipy.stats.beta.cdf(found, a, b)[told], uniform.numpy()[told], rtol=0, atol=1 / NODES)
    assert (np.diff(found) >= 0).all() and found.min() >= 0 and found.max() <= 1
    single = take_quantiles(quantiles.float(), uniform.float())
    assert single.dtype == torch.float32 and float(single.max()) <= 1


def test_resizing_reads_the_signal_at_other_times(beats: Tensor, look: Look) -> None:
    view = look()
    changed = build_augmentation(Resizing.Config())(beats, view).numpy()
    stretch = 0.8 + 0.45 * view.uniform("stretch", 1).numpy()[:, 0]
    place = view.uniform("place", 1).numpy()[:, 0]
    assert stretch.min() < 1 < stretch.max()
    for row in range(len(beats)):
        first = place[row] * 999 * (1 - 1 / stretch[row])
        at = first + np.arange(1000) / stretch[row]
        for lead in range(12):
            wanted = np.interp(at, np.arange(1000), beats[row, lead].double().numpy(), left=0, right=0)
            np.testing.assert_allclose(changed[row, lead], wanted, rtol=0, atol=3e-6)


@settings(max_examples=40)
@given(st.data())
def test_resizing_by_1_changes_nothing_and_by_more_stays_within_the_window(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 300))
    stretch = data.draw(st.floats(1.0, 4.0))
    view = View(
        draws=Draws(seed=0, step=data.draw(st.integers(0, 1000)), rows=(0, 2), all_rows=2, device=torch.device("cpu")),
        rate_hz=500.0,
        mean_mv_BL=torch.zeros(2, 3),
        std_mv_BL=torch.ones(2, 3),
    )
    ramp = 1.0 + torch.arange(samples, dtype=torch.float32).expand(2, 3, -1)
    same = build_augmentation(Resizing.Config(stretch=(1.0, 1.0)))(ramp, view)
    torch.testing.assert_close(same, ramp)
    longer = build_augmentation(Resizing.Config(stretch=(stretch, stretch)))(ramp, view)
    assert float(longer.min()) >= 1 - 1e-4 and float(longer.max()) <= samples + 1e-3
    slope = longer.diff(dim=2)
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / stretch), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: GaussianSmoothing.Config(sd_ms=(0.0, 1.0)), "sd_ms must be above 0"),
        (lambda: Resizing.Config(stretch=(0.0, 1.0)), "stretch must be above 0"),
        (lambda: Resizing.Config(stretch=(1.2, 1.1)), "stretch needs finite values"),
        (lambda: STFTMask.Config(beta=(0.0, 1.0)), "stft_mask needs"),
        (lambda: STFTMask.check(STFTMask.Config(), 12, 998, 500.0), "999 is longer than the window's 998"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: Callable[[], object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        wrong()
