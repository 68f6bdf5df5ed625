"""The canonical form: exact counts where they can be kept, a bounded error where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ecgfm.errors import RecordError
from ecgfm.leads import LEADS
from ecgfm.record import MISSING, Record
from ecgfm.signal.canonical import LARGEST_COUNT, Canonical, canonical, quantise
from ecgfm.signal.quality import Bounds


def ecg_counts(samples: int = 5000, rate_hz: float = 500.0) -> NDArray[np.int16]:
    """Return twelve leads of about 1 to 2 mV at 1 microvolt a count, which satisfy no identity."""
    time_s = np.arange(samples) / rate_hz
    lead = np.arange(12)[:, None]
    return np.rint(800 * np.sin(2 * np.pi * (1 + 0.1 * lead) * time_s + lead) + 20 * lead).astype(np.int16)


def record_of(counts_LT: NDArray[np.int16], **changed: Any) -> Record:
    settings: dict[str, Any] = {
        "record": "x",
        "database": "test",
        "counts_LT": counts_LT,
        "leads": LEADS,
        "microvolt_per_count": np.ones(len(counts_LT)),
        "offset_counts": np.zeros(len(counts_LT), np.int64),
        "rate_hz": 500.0,
    }
    return Record(**(settings | changed))


def form_of(record: Record, rate_hz: float | None = 500.0) -> Canonical:
    return canonical(record, rate_hz=rate_hz, min_s=1.0, bounds=Bounds())


def millivolt(form: Canonical) -> NDArray[np.float64]:
    return np.asarray(form.counts_LT * (form.microvolt_per_count * 1e-3), dtype=np.float64)


def test_counts_that_need_no_change_are_kept_bit_for_bit() -> None:
    counts_LT = ecg_counts()
    form = form_of(record_of(counts_LT, microvolt_per_count=np.full(12, 4.88)))
    np.testing.assert_array_equal(form.counts_LT, counts_LT)
    assert (form.microvolt_per_count, form.rate_hz, form.derived) == (4.88, 500.0, ())
    assert form.counts_LT.dtype == np.int16


@given(order=st.permutations(range(12)))
def test_leads_in_another_order_are_sorted_without_touching_counts(order: list[int]) -> None:
    counts_LT = ecg_counts(600)
    names = tuple(LEADS[index].upper() for index in order)
    form = form_of(record_of(counts_LT[order], leads=names))
    np.testing.assert_array_equal(form.counts_LT, counts_LT)


def test_an_offset_is_taken_off_the_counts() -> None:
    counts_LT = ecg_counts()
    offset_L = np.arange(12, dtype=np.int64) * 10 - 50
    shifted_LT = (counts_LT + offset_L[:, None]).astype(np.int16)
    form = form_of(record_of(shifted_LT, offset_counts=offset_L))
    np.testing.assert_array_equal(form.counts_LT, counts_LT)


def test_frank_leads_of_another_gain_do_not_cost_the_exact_counts() -> None:
    counts_LT = ecg_counts()
    form = form_of(
        record_of(
            np.concatenate([counts_LT, counts_LT[:3]]),
            leads=(*LEADS, "vx", "vy", "vz"),
            microvolt_per_count=np.array([1.0] * 12 + [0.5] * 3),
            offset_counts=np.zeros(15, np.int64),
        )
    )
    np.testing.assert_array_equal(form.counts_LT, counts_LT)


def test_different_gains_end_on_one_scale_within_half_a_microvolt() -> None:
    counts_LT = ecg_counts()
    microvolt_L = np.linspace(0.7, 3.1, 12)
    form = form_of(record_of(counts_LT, microvolt_per_count=microvolt_L))
    truth_mv = counts_LT * microvolt_L[:, None] * 1e-3
    np.testing.assert_allclose(millivolt(form), truth_mv, rtol=0, atol=0.5e-3)


@given(
    scale_uv=st.floats(1.0, 32_767.0),
    seed=st.integers(0, 100),
)
def test_the_error_of_quantising_is_at_most_half_a_microvolt(scale_uv: float, seed: int) -> None:
    signal_LT = np.random.default_rng(seed).uniform(-scale_uv, scale_uv, (3, 50))
    counts_LT, step = quantise(signal_LT)
    assert np.abs(counts_LT * step - signal_LT).max() <= 0.5 + 1e-9
    assert counts_LT.min() > MISSING  # that count is kept for "no sample"


@pytest.mark.parametrize(("largest_uv", "step"), [(8_000.0, 0.25), (10_000.0, 0.5), (30_000.0, 1.0), (32_767.0, 1.0)])
def test_the_step_is_the_finest_that_holds_the_signal(largest_uv: float, step: float) -> None:
    assert quantise(np.array([[0.0, largest_uv]]))[1] == step


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecordError, match=r"32\.8 mV") as caught:
        quantise(np.array([[0.0, 32_767.6]]))
    assert caught.value.reason == "not-int16"


def test_derived_leads_are_named_and_right() -> None:
    counts_LT = ecg_counts()
    kept = [0, 1, *range(6, 12)]
    form = form_of(
        record_of(
            counts_LT[kept],
            leads=tuple(LEADS[index] for index in kept),
            microvolt_per_count=np.ones(8),
            offset_counts=np.zeros(8, np.int64),
        )
    )
    assert form.derived == ("III", "aVR", "aVL", "aVF")
    one, two = counts_LT[:2].astype(np.float64) * 1e-3
    truth = {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    for lead, expected in truth.items():
        np.testing.assert_allclose(millivolt(form)[LEADS.index(lead)], expected, rtol=0, atol=0.5e-3)


def test_another_rate_is_that_of_scipy() -> None:
    counts_LT = ecg_counts(4000, 1000.0)
    form = form_of(record_of(counts_LT, rate_hz=1000.0))
    assert (form.rate_hz, form.counts_LT.shape) == (500.0, (12, 2000))
    theirs_mv = resample_poly(counts_LT * 1e-3, 1, 2, axis=-1, window=("kaiser", 5.0))
    # Half a microvolt of quantisation and the sum of the filter, which is 1 in ours and nearly so in scipy's.
    np.testing.assert_allclose(millivolt(form)[:, 20:-20], theirs_mv[:, 20:-20], rtol=0, atol=1e-3)


def test_no_rate_wanted_keeps_the_records_own() -> None:
    counts_LT = ecg_counts(2000, 257.0)
    form = form_of(record_of(counts_LT, rate_hz=257.0), rate_hz=None)
    assert form.rate_hz == 257.0
    np.testing.assert_array_equal(form.counts_LT, counts_LT)


def test_a_short_record_is_refused_and_one_of_just_the_length_kept() -> None:
    record = record_of(ecg_counts(500))
    assert canonical(record, rate_hz=None, min_s=1.0, bounds=Bounds()).counts_LT.shape == (12, 500)
    with pytest.raises(RecordError, match=r"1 s, wanted are at least 1\.01 s") as caught:
        canonical(record, rate_hz=None, min_s=1.01, bounds=Bounds())
    assert caught.value.reason == "too-short"


@pytest.mark.parametrize(("lead", "reason"), [("V3", "samples-missing"), ("aVR", "samples-missing")])
def test_a_missing_sample_is_never_taken_for_a_voltage(lead: str, reason: str) -> None:
    counts_LT = ecg_counts()
    counts_LT[LEADS.index(lead), 100] = MISSING
    with pytest.raises(RecordError, match=lead) as caught:
        form_of(record_of(counts_LT))
    assert caught.value.reason == reason


def test_a_missing_chest_lead_is_refused() -> None:
    with pytest.raises(RecordError, match="V6") as caught:
        form_of(
            record_of(
                ecg_counts()[:11],
                leads=LEADS[:11],
                microvolt_per_count=np.ones(11),
                offset_counts=np.zeros(11, np.int64),
            )
        )
    assert caught.value.reason == "lead-missing"


def test_an_offset_that_leaves_int16_is_computed_instead_of_wrapped() -> None:
    counts_LT = ecg_counts()
    offset_L = np.full(12, 20_000, np.int64)
    shifted_LT = (counts_LT - 15_000).astype(np.int16)  # true value: counts - 35,000 at 0.25 microvolt
    record = record_of(shifted_LT, offset_counts=offset_L, microvolt_per_count=np.full(12, 0.25))
    form = form_of(record)
    truth_mv = (counts_LT.astype(np.float64) - 35_000) * 0.25e-3
    np.testing.assert_allclose(millivolt(form), truth_mv, rtol=0, atol=0.5e-3)
    assert np.abs(form.counts_LT.astype(int)).max() <= LARGEST_COUNT


def test_the_record_is_not_changed() -> None:
    counts_LT = ecg_counts()
    before = counts_LT.copy()
    form = form_of(record_of(counts_LT))
    form.counts_LT[:] = 0
    np.testing.assert_array_equal(counts_LT, before)
