"""Masks against loops over rows, leads and samples, fed with the same uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from ecgfm.data.augment.base import View, build_augmentation
from ecgfm.data.augment.block_mask import BlockMask
from ecgfm.data.augment.lead_mask import LeadMask
from ecgfm.data.augment.peak_mask import PeakMask
from ecgfm.data.augment.random_erasing import RandomErasing
from ecgfm.data.augment.time_mask import TimeMask
from ecgfm.data.batch import Draws
from ecgfm.errors import ConfigError

Look = Callable[..., View]


def ones_view(step: int, rows: int = 4) -> View:
    return View(
        draws=Draws(seed=0, step=step, rows=(0, rows), all_rows=rows, device=torch.device("cpu")),
        rate_hz=500.0,
        mean_mv_BL=torch.zeros(rows, 12),
        std_mv_BL=torch.ones(rows, 12),
    )


@pytest.mark.parametrize("per_lead", [True, False])
def test_time_mask_hides_a_share_of_single_samples(beats: Tensor, look: Look, per_lead: bool) -> None:
    changed = build_augmentation(TimeMask.Config(per_lead=per_lead))(beats, look())
    hidden = (changed == 0).numpy()
    assert torch.equal(changed[changed != 0], beats[changed != 0])
    if not per_lead:
        assert (hidden == hidden[:, :1]).all()
        hidden = hidden[:, :1]
    # Five standard errors of a share of .2; neighbours are hidden independently.
    error = 5 * math.sqrt(0.2 * 0.8 / hidden.size)
    assert abs(hidden.mean() - 0.2) < error
    assert abs((hidden[..., 1:] & hidden[..., :-1]).mean() - 0.04) < error


@pytest.mark.parametrize("per_lead", [True, False])
def test_block_mask_hides_one_block_that_goes_on_at_the_start(beats: Tensor, look: Look, per_lead: bool) -> None:
    view = look()
    changed = build_augmentation(BlockMask.Config(per_lead=per_lead))(beats, view).numpy()
    start = view.uniform("start", 12 if per_lead else 1).numpy()
    wrapped = 0
    for row in range(len(beats)):
        for lead in range(12):
            wanted = beats[row, lead].numpy().copy()
            first = int(start[row, lead if per_lead else 0] * 1000)
            wrapped += first > 800
            for sample in range(first, first + 200):
                wanted[sample % 1000] = 0
            np.testing.assert_array_equal(changed[row, lead], wanted)
    assert wrapped > 0


@settings(max_examples=40)
@given(step=st.integers(0, 10_000), share=st.floats(0.0, 1.0), samples=st.integers(1, 300))
def test_block_mask_hides_exactly_the_share(step: int, share: float, samples: int) -> None:
    changed = build_augmentation(BlockMask.Config(share=share))(torch.ones(4, 12, samples), ones_view(step))
    assert set((changed == 0).sum(dim=2).flatten().tolist()) == {math.floor(round(share * samples, 6))}


def test_peak_mask_hides_where_the_mean_lead_in_millivolt_is_high_or_low(beats: Tensor, look: Look) -> None:
    view = look()
    changed = build_augmentation(PeakMask.Config())(beats, view).numpy()
    inverse = view.uniform("inverse", 1).numpy()[:, 0] < 0.5
    assert set(inverse.tolist()) == {True, False}
    for row in range(len(beats)):
        std, mean = (values[row].double().numpy()[:, None] for values in (view.std_mv_BL, view.mean_mv_BL))
        lead_mean = (beats[row].double().numpy() * std + mean).mean(axis=0)
        above = lead_mean - lead_mean.mean()
        wanted = np.where((above > 0) ^ inverse[row], 0, beats[row].numpy())
        sure = np.abs(above) > 1e-6  # float32 may take the other side
        assert sure.sum() > 990
        np.testing.assert_array_equal(changed[row][:, sure], wanted[:, sure])


def test_lead_mask_hides_leads_by_their_own_draws(beats: Tensor, look: Look) -> None:
    view = look()
    changed = build_augmentation(LeadMask.Config())(beats, view)
    uniform = view.uniform("hidden", 12)
    for row in range(len(beats)):
        for lead in range(12):
            wanted = torch.zeros(1000) if uniform[row, lead] < 0.5 else beats[row, lead]
            assert torch.equal(changed[row, lead], wanted)


def test_lead_mask_keeps_at_least_one_lead_and_hides_about_its_share() -> None:
    signal = torch.ones(2000, 12, 1)
    kept = build_augmentation(LeadMask.Config(share=1.0))(signal, ones_view(0, 2000))[:, :, 0]
    assert (kept.sum(dim=1) == 1).all()
    # Which one is a matter of chance: 167 rows for each lead, with a standard deviation of 12.
    assert (kept.sum(dim=0) - 2000 / 12).abs().max() < 60
    half = build_augmentation(LeadMask.Config())(signal, ones_view(1, 2000))
    assert abs(float(half.mean()) - 0.5) < 5 * 0.5 / math.sqrt(24_000)


@pytest.mark.parametrize("fill", ["noise", "zero"])
def test_erasing_overwrites_one_segment_of_all_leads(beats: Tensor, look: Look, fill: str) -> None:
    view = look()
    changed = build_augmentation(RandomErasing.Config(fill=fill))(beats, view).numpy()  # type: ignore[arg-type]
    length, start = (view.uniform(word, 1).numpy()[:, 0] for word in ("length", "start"))
    written = []
    for row in range(len(beats)):
        samples = int((0.02 + 0.38 * length[row]) * 1000)
        first = int(start[row] * (1000 - samples + 1))
        outside = np.ones(1000, dtype=bool)
        outside[first : first + samples] = False
        np.testing.assert_array_equal(changed[row][:, outside], beats[row].numpy()[:, outside])
        written.append(changed[row][:, ~outside].ravel())
    if fill == "zero":
        assert not np.concatenate(written).any()
    else:
        assert kstest(np.concatenate(written), "norm").pvalue > 1e-3


@settings(max_examples=40)
@given(st.data())
def test_erasing_stays_within_its_bounds(data: st.DataObject) -> None:
    low, high = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    samples = data.draw(st.integers(1, 300))
    erasing = build_augmentation(RandomErasing.Config(share=(low, high), fill="zero"))
    changed = erasing(torch.ones(4, 12, samples), ones_view(data.draw(st.integers(0, 1000))))
    share = (changed == 0).double().mean(dim=2)
    assert (share <= high + 1e-9).all() and (share > low - 1 / samples - 1e-9).all()
    assert ((changed[:, 0, 1:] != changed[:, 0, :-1]).sum(dim=1) <= 2).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TimeMask.Config(share=1.1),
        lambda: RandomErasing.Config(share=(0.4, 0.1)),
        lambda: LeadMask.Config(share=-1),
    ],
)
def test_shares_outside_of_0_to_1_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=r"share needs values in 0\.\.1, ascending"):
        wrong()
