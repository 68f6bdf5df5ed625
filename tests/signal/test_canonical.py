"""The canonical form: exact counts where they can be kept, a bounded error where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ecgfm.errors import ConfigError, RecordError
from ecgfm.leads import LEADS
from ecgfm.record import MISSING, Counts, Record
from ecgfm.signal.canonical import INTERPOLATED, LARGEST_COUNT, Canonical, Policy, Segment, canonical, quantise
from ecgfm.signal.fingerprint import fingerprint
from ecgfm.signal.highpass import highpass


def ecg_counts(samples: int = 5000, rate_hz: float = 500.0) -> NDArray[np.int16]:
    """Return twelve leads of about 1 to 2 mV at 1 microvolt a count, which satisfy no identity."""
    time_s = np.arange(samples) / rate_hz
    lead = np.arange(12)[:, None]
    return np.rint(800 * np.sin(2 * np.pi * (1 + 0.1 * lead) * time_s + lead) + 20 * lead).astype(np.int16)


def record_of(counts_LT: Counts, **changed: Any) -> Record:
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


def forms_of(record: Record, **policy: Any) -> Canonical:
    return canonical(record, Policy(**({"min_s": 1.0} | policy)))


def form_of(record: Record, **policy: Any) -> Segment:
    """Return the one segment of a short record."""
    (segment,) = forms_of(record, **policy).segments
    return segment


def millivolt(form: Segment) -> NDArray[np.float64]:
    return np.asarray(form.counts_LT * (form.microvolt_per_count * 1e-3), dtype=np.float64)


def test_counts_that_need_no_change_are_kept_bit_for_bit() -> None:
    counts_LT = ecg_counts()
    whole = forms_of(record_of(counts_LT, microvolt_per_count=np.full(12, 4.88)))
    (form,) = whole.segments
    np.testing.assert_array_equal(form.counts_LT, counts_LT)
    assert (form.microvolt_per_count, whole.rate_hz, whole.derived, whole.cut_s) == (4.88, 500.0, (), 0.0)
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


@given(
    order=st.permutations(range(13)),
    gain=st.sampled_from([1.0, 2.44, 4.88]),
    offset=st.sampled_from([0, 7, -900]),
    rate_hz=st.sampled_from([257.0, 400.0, 500.0]),
    seed=st.integers(0, 1000),
)
def test_counts_that_are_kept_have_the_fingerprint_of_the_published_ones(
    order: list[int], gain: float, offset: int, rate_hz: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    counts_LT = np.rint(random.normal(0, 10, (13, 2600)).cumsum(axis=1) + offset).astype(np.int16)
    record = record_of(
        counts_LT[order],
        leads=tuple((*LEADS, "vx")[index] for index in order),
        microvolt_per_count=np.array([gain if index < 12 else 7.0 for index in order]),
        offset_counts=np.full(13, offset),
        rate_hz=rate_hz,
    )
    form = form_of(record, rate_hz=None)
    np.testing.assert_array_equal(form.counts_LT, counts_LT[:12] - offset)
    assert len(form.content) == 64
    assert form.content == fingerprint(record.counts_LT, record.leads, record.microvolt_per_count, rate_hz)


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
    whole = forms_of(
        record_of(
            counts_LT[kept],
            leads=tuple(LEADS[index] for index in kept),
            microvolt_per_count=np.ones(8),
            offset_counts=np.zeros(8, np.int64),
        )
    )
    assert whole.derived == ("III", "aVR", "aVL", "aVF")
    (form,) = whole.segments
    one, two = counts_LT[:2].astype(np.float64) * 1e-3
    truth = {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    for lead, expected in truth.items():
        np.testing.assert_allclose(millivolt(form)[LEADS.index(lead)], expected, rtol=0, atol=0.5e-3)


def test_another_rate_is_that_of_scipy() -> None:
    counts_LT = ecg_counts(4000, 1000.0)
    whole = forms_of(record_of(counts_LT, rate_hz=1000.0))
    (form,) = whole.segments
    assert (whole.rate_hz, form.counts_LT.shape) == (500.0, (12, 2000))
    theirs_mv = resample_poly(counts_LT * 1e-3, 1, 2, axis=-1, window=("kaiser", 5.0))
    # Half a microvolt of quantisation and the sum of the filter, which is 1 in ours and nearly so in scipy's.
    np.testing.assert_allclose(millivolt(form)[:, 20:-20], theirs_mv[:, 20:-20], rtol=0, atol=1e-3)


def test_no_rate_wanted_keeps_the_records_own() -> None:
    counts_LT = ecg_counts(2000, 257.0)
    whole = forms_of(record_of(counts_LT, rate_hz=257.0), rate_hz=None)
    (form,) = whole.segments
    assert whole.rate_hz == 257.0
    np.testing.assert_array_equal(form.counts_LT, counts_LT)


def test_a_short_record_is_refused_and_one_of_just_the_length_kept() -> None:
    record = record_of(ecg_counts(500))
    assert form_of(record).counts_LT.shape == (12, 500)
    with pytest.raises(RecordError, match=r"1 s, wanted are at least 1\.01 s") as caught:
        form_of(record, min_s=1.01)
    assert caught.value.reason == "too-short"


@pytest.mark.parametrize("rate_hz", [5.0, 49.9, 20_000.0])
def test_a_rate_that_no_recorder_has_is_refused(counts_LT: Counts, rate_hz: float) -> None:
    with pytest.raises(RecordError, match=f"{rate_hz:g} samples a second; believed are 50 to 10000") as caught:
        form_of(record_of(counts_LT, rate_hz=rate_hz), min_s=0.001)
    assert caught.value.reason == "implausible-rate"
    assert forms_of(record_of(counts_LT, rate_hz=50.0), rate_hz=None).segments


@pytest.mark.parametrize("floats", [False, True])
def test_a_short_gap_becomes_a_straight_line_and_is_said(floats: bool) -> None:
    counts_LT = ecg_counts()
    spoilt_LT: Any = counts_LT.astype(np.float32) if floats else counts_LT.copy()
    spoilt_LT[LEADS.index("V3"), 100:150] = np.nan if floats else MISSING
    form = form_of(record_of(spoilt_LT))
    assert form.flags[INTERPOLATED] == ("V3",)
    truth_mv = counts_LT * 1e-3
    row = truth_mv[LEADS.index("V3")]
    row[100:150] = np.interp(np.arange(100, 150), [99, 150], [row[99], row[150]])
    np.testing.assert_allclose(millivolt(form), truth_mv, rtol=0, atol=0.5e-3)


@pytest.mark.parametrize("samples", [51, 5000])
def test_a_long_gap_is_refused_and_never_taken_for_a_voltage(samples: int) -> None:
    counts_LT = ecg_counts()
    counts_LT[LEADS.index("aVR"), :samples] = MISSING
    with pytest.raises(RecordError, match="aVR") as caught:
        form_of(record_of(counts_LT))
    assert caught.value.reason == "samples-missing"
    if samples < 5000:
        assert INTERPOLATED in form_of(record_of(counts_LT), max_gap_s=0.2).flags


def test_missing_samples_of_other_leads_do_not_matter() -> None:
    counts_LT = ecg_counts()
    frank_LT = np.full((1, 5000), MISSING)
    form = form_of(
        record_of(
            np.concatenate([frank_LT, counts_LT]),
            leads=("vx", *LEADS),
            microvolt_per_count=np.ones(13),
            offset_counts=np.zeros(13, np.int64),
        )
    )
    np.testing.assert_array_equal(form.counts_LT, counts_LT)
    assert INTERPOLATED not in form.flags


def test_a_long_recording_is_cut_and_each_part_stands_where_it_says() -> None:
    counts_LT = ecg_counts(7_200)
    whole = forms_of(record_of(counts_LT), segment_s=3.0, min_s=2.0)
    assert [segment.start_s for segment in whole.segments] == [0.0, 3.0, 6.0, 9.0, 12.0]
    for segment in whole.segments:
        start = round(segment.start_s * 500)
        np.testing.assert_array_equal(segment.counts_LT, counts_LT[:, start : start + 1500])
    assert whole.segments[-1].counts_LT.shape[1] == 1200 and whole.cut_s == 0.0
    shorter = forms_of(record_of(counts_LT), segment_s=3.0, min_s=2.5)
    assert len(shorter.segments) == 4
    assert shorter.cut_s == pytest.approx(2.4)


def test_a_gap_costs_its_own_segment_only() -> None:
    counts_LT = ecg_counts(6_000)
    counts_LT[4, 2_000:2_400] = MISSING
    whole = forms_of(record_of(counts_LT), segment_s=3.0)
    assert [segment.start_s for segment in whole.segments] == [0.0, 6.0, 9.0]
    assert [(refusal.start_s, refusal.reason) for refusal in whole.refused] == [(3.0, "samples-missing")]
    assert "400 samples in a row" in whole.refused[0].message and "aVL" in whole.refused[0].message
    for segment in whole.segments:
        start = round(segment.start_s * 500)
        np.testing.assert_allclose(millivolt(segment), counts_LT[:, start : start + 1500] * 1e-3, rtol=0, atol=0.5e-3)


def test_the_whole_recording_is_filtered_before_it_is_cut() -> None:
    counts_LT = ecg_counts(15_000)
    whole = forms_of(record_of(counts_LT), segment_s=10.0, highpass_hz=0.5)
    expected_LT = highpass(counts_LT * 1e-3, 500.0, 0.5)
    for segment in whole.segments:
        start = round(segment.start_s * 500)
        np.testing.assert_allclose(millivolt(segment), expected_LT[:, start : start + 5000], rtol=0, atol=0.5e-3)


def test_floats_are_quantised_within_half_a_microvolt() -> None:
    signal_LT = (ecg_counts() * 1e-3 + 1e-4).astype(np.float32)
    form = form_of(record_of(signal_LT, microvolt_per_count=np.full(12, 1000.0)))
    np.testing.assert_allclose(millivolt(form), signal_LT, rtol=0, atol=0.5e-3)


def test_a_flagged_segment_is_kept_unless_the_flag_is_refused() -> None:
    counts_LT = ecg_counts()
    counts_LT[LEADS.index("V2")] = 0
    assert form_of(record_of(counts_LT)).flags["flat-lead"] == ("V2",)
    with pytest.raises(RecordError, match="flat-lead: V2") as caught:
        form_of(record_of(counts_LT), refuse=("flat-lead",))
    assert caught.value.reason == "flat-lead"


def test_segments_shorter_than_the_shortest_are_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="--segment-s 5 is shorter than --min-s 10"):
        Policy(segment_s=5.0, min_s=10.0)


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


def test_a_lead_that_is_named_twice_is_refused_as_such() -> None:
    with pytest.raises(RecordError, match="V1 is named twice") as caught:
        form_of(record_of(ecg_counts(), leads=(*LEADS[:11], "V1")))
    assert caught.value.reason == "lead-doubled"


def test_a_rate_that_cannot_be_resampled_refuses_the_record_alone() -> None:
    with pytest.raises(RecordError, match=r"499\.9978") as caught:
        form_of(record_of(ecg_counts(), rate_hz=499.9978))
    assert caught.value.reason == "not-computable"


def test_an_offset_that_leaves_int16_is_computed_instead_of_wrapped() -> None:
    counts_LT = ecg_counts()
    offset_L = np.full(12, 20_000, np.int64)
    shifted_LT = (counts_LT - 15_000).astype(np.int16)  # true value: counts - 35,000 at 0.25 microvolt
    record = record_of(shifted_LT, offset_counts=offset_L, microvolt_per_count=np.full(12, 0.25))
    form = form_of(record)
    truth_mv = (counts_LT.astype(np.float64) - 35_000) * 0.25e-3
    np.testing.assert_allclose(millivolt(form), truth_mv, rtol=0, atol=0.5e-3)
    assert np.abs(form.counts_LT.astype(int)).max() <= LARGEST_COUNT


@pytest.mark.parametrize("policy", [{}, {"highpass_hz": 0.5}, {"rate_hz": 250.0}])
def test_the_record_is_not_changed(policy: dict[str, float]) -> None:
    counts_LT = ecg_counts()
    counts_LT[3, 50:60] = MISSING
    before = counts_LT.copy()
    form_of(record_of(counts_LT), **policy)
    np.testing.assert_array_equal(counts_LT, before)
