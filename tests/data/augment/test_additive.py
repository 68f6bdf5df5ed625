"""Disturbances against slow float64 sums over the papers' formulas, fed with the same uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor

from ecgfm.data.augment import baseline_shift, baseline_wander, emg_noise, gaussian_noise, powerline
from ecgfm.data.augment._additive import Additive
from ecgfm.data.augment.base import View, build_augmentation
from ecgfm.data.batch import Draws
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS

Look = Callable[..., View]
FAMILIES = [
    baseline_shift.BaselineShift.Config,
    baseline_wander.BaselineWander.Config,
    emg_noise.EMGNoise.Config,
    gaussian_noise.GaussianNoise.Config,
    powerline.Powerline.Config,
]


def added_mv(config: Additive.Config, signal: Tensor, view: View) -> NDArray[np.float64]:
    """Return what an augmentation adds, in millivolt."""
    changed = build_augmentation(config)(signal, view)
    added: NDArray[np.float64] = ((changed.double() - signal.double()) * view.std_mv_BL.double()[:, :, None]).numpy()
    return added


def each(config: type[Additive.Config], **more: object) -> Additive.Config:
    """Return settings under which all twelve leads are drawn for."""
    return config(limb_leads_follow=False, **more)  # type: ignore[arg-type]


# Differences of float32 signals of size 5, times 0.4 mV.
TOLERANCE = 2e-6


def test_powerline_is_a_cosine_of_50_or_60_hz_of_one_phase_in_all_leads(beats: Tensor, look: Look) -> None:
    view = look()
    found = added_mv(each(powerline.Powerline.Config), beats, view)
    mains, phase, size = (view.uniform(word, 1).numpy()[:, 0] for word in ("mains", "phase", "amplitude"))
    assert {bool(value < 0.5) for value in mains} == {True, False}
    for row in range(len(beats)):
        hertz = 50 if mains[row] < 0.5 else 60
        for sample in range(0, 1000, 13):
            wanted = 0.5 * size[row] * math.cos(2 * math.pi * hertz * sample / 500 + 2 * math.pi * phase[row])
            np.testing.assert_allclose(found[row, :, sample], wanted, rtol=0, atol=TOLERANCE)


def test_wander_is_three_cosines_with_a_gain_in_each_lead(beats: Tensor, look: Look) -> None:
    view = look()
    found = added_mv(each(baseline_wander.BaselineWander.Config), beats, view)
    frequency, phase, size = (view.uniform(word, 3).numpy() for word in ("frequency", "phase", "amplitude"))
    gain = view.uniform("lead", 12).numpy()
    for row in range(len(beats)):
        for lead in range(12):
            factor = 1 + 0.5 * NormalDist().inv_cdf(gain[row, lead])
            for sample in range(0, 1000, 97):
                wanted = 0.0
                for one in range(3):
                    hertz = 0.01 + 0.19 * frequency[row, one]
                    angle = 2 * math.pi * (hertz * sample / 500 + phase[row, one])
                    wanted += factor * 0.5 * size[row, one] * math.cos(angle)
                np.testing.assert_allclose(found[row, lead, sample], wanted, rtol=0, atol=TOLERANCE)


def test_shift_is_a_segment_of_some_20_percent_up_or_down(beats: Tensor, look: Look) -> None:
    view = look()
    found = added_mv(each(baseline_shift.BaselineShift.Config), beats, view)
    length, start, size = (view.uniform(word, 1).numpy()[:, 0] for word in ("length", "start", "amplitude"))
    sign = view.uniform("sign", 12).numpy()
    for row in range(len(beats)):
        samples = min(max(int(0.2 * 1000 * (1 + 0.2 * NormalDist().inv_cdf(length[row]))), 1), 1000)
        first = int(start[row] * (1000 - samples + 1))
        wanted = np.zeros((12, 1000))
        for lead in range(12):
            wanted[lead, first : first + samples] = 0.25 * size[row] * (-1 if sign[row, lead] < 0.5 else 1)
        np.testing.assert_allclose(found[row], wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", [gaussian_noise.GaussianNoise, emg_noise.EMGNoise])
def test_noise_is_white_normal_and_of_the_stated_size(
    family: type[gaussian_noise.GaussianNoise | emg_noise.EMGNoise], beats: Tensor, look: Look
) -> None:
    view = look()
    found = added_mv(each(family.Config), beats, view)
    if family is gaussian_noise.GaussianNoise:
        sd = np.full((len(beats), 12), 0.05)
    else:
        sd = 0.1 * view.uniform("size", 12).numpy()
        assert 0 < sd.min() < sd.max() < 0.1
    unit = found / sd[:, :, None]
    # A standard deviation from 1000 numbers has a relative error of 2.2 %; of 96, none beyond 4.5 of them. Where
    # noise is weak, the rounding of the signal shows.
    np.testing.assert_allclose(unit.std(axis=2), 1, rtol=0, atol=0.11)
    assert kstest(unit[sd > 0.005].ravel(), "norm").pvalue > 1e-3
    lagged = (unit[..., 1:] * unit[..., :-1]).mean()
    between = (unit[:, 1:] * unit[:, :-1]).mean()
    assert abs(lagged) < 5 / math.sqrt(unit.size) and abs(between) < 5 / math.sqrt(unit.size)


@pytest.mark.parametrize("family", FAMILIES)
def test_limb_leads_follow_from_one_and_two(family: type[Additive.Config], beats: Tensor, look: Look) -> None:
    disturbance = dict(zip(LEADS, added_mv(family(), beats, look()).swapaxes(0, 1), strict=True))
    one, two = disturbance["I"], disturbance["II"]
    np.testing.assert_allclose(disturbance["III"], two - one, rtol=0, atol=5e-6)
    np.testing.assert_allclose(disturbance["aVR"], -(one + two) / 2, rtol=0, atol=5e-6)
    np.testing.assert_allclose(disturbance["aVL"], one - two / 2, rtol=0, atol=5e-6)
    np.testing.assert_allclose(disturbance["aVF"], two - one / 2, rtol=0, atol=5e-6)
    assert all(np.abs(disturbance[lead]).max() > 1e-3 for lead in ("I", "II", "V1", "V6"))


@settings(max_examples=25)
@given(step=st.integers(0, 10_000), top=st.floats(0.0, 2.0), samples=st.integers(2, 400))
def test_no_disturbance_exceeds_its_bound(step: int, top: float, samples: int) -> None:
    signal = torch.zeros(4, 12, samples)
    view = View(
        draws=Draws(seed=0, step=step, rows=(0, 4), all_rows=4, device=torch.device("cpu")),
        rate_hz=500.0,
        mean_mv_BL=torch.zeros(4, 12),
        std_mv_BL=torch.ones(4, 12),
    )
    bounds = (0.0, top)
    hum = added_mv(each(powerline.Powerline.Config, amplitude_mv=bounds), signal, view)
    shift = added_mv(each(baseline_shift.BaselineShift.Config, amplitude_mv=bounds), signal, view)
    wander = added_mv(each(baseline_wander.BaselineWander.Config, amplitude_mv=bounds, lead_sd=0.0), signal, view)
    assert np.abs(hum).max() <= top * (1 + 1e-6)
    assert np.abs(shift).max() <= top * (1 + 1e-6)
    assert np.abs(wander).max() <= 3 * top * (1 + 1e-6)
    assert (np.count_nonzero(shift, axis=2) <= samples).all()


def test_mains_that_the_rate_cannot_show_are_refused() -> None:
    hum = powerline.Powerline.Config()
    powerline.Powerline.check(hum, 12, 1000, 250.0)
    with pytest.raises(ConfigError, match="60 Hz needs more than 120 samples a second, got 100"):
        powerline.Powerline.check(hum, 12, 1000, 100.0)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        (gaussian_noise.GaussianNoise.Config, {"sd_mv": -0.1}),
        (emg_noise.EMGNoise.Config, {"sd_mv": (0.2, 0.1)}),
        (powerline.Powerline.Config, {"amplitude_mv": (0.0, math.inf)}),
        (baseline_wander.BaselineWander.Config, {"frequency_hz": (-1.0, 0.1)}),
        (baseline_wander.BaselineWander.Config, {"num_cosines": 0}),
        (baseline_shift.BaselineShift.Config, {"length_share": 1.2}),
    ],
)
def test_magnitudes_that_mean_nothing_are_refused_by_name(
    family: type[Additive.Config], wrong: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        family(**wrong)  # type: ignore[arg-type]
