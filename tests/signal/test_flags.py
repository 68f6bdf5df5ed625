"""Quality flags: each has a record made for it, and a near miss; the numbers behind them against plain loops."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ecgfm import config
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, SignalError
from ecgfm.leads import LEADS
from ecgfm.signal.flags import Assessment, Thresholds, all_leads_flat, assess, implausible_gain

Change = Callable[[NDArray[np.float64]], None]
RATE_HZ = 500.0
TIME_S = np.arange(5000) / RATE_HZ
ONE, TWO, III, AVR, AVL, AVF, V1, V2, V3, V4, V5, V6 = range(12)


@pytest.fixture
def microvolt_LT() -> NDArray[np.float64]:
    """Return 10 s of twelve leads with beats, wander and noise, whose limb leads fit together."""
    random = np.random.default_rng(5)
    beat = np.exp(-((((TIME_S * 1.2) % 1 - 0.4) / 0.03) ** 2)) + 0.25 * np.exp(
        -((((TIME_S * 1.2) % 1 - 0.7) / 0.1) ** 2)
    )
    gains = np.array([600, 1000, 0, 0, 0, 0, -800, -1200, 900, 1500, 1300, 900.0])[:, None]
    wander = 80 * np.sin(2 * np.pi * 0.2 * TIME_S + random.uniform(0, 6, (12, 1)))
    signal_LT = gains * beat + wander + random.normal(0, 8, (12, 5000))
    signal_LT[III] = signal_LT[TWO] - signal_LT[ONE]
    signal_LT[AVR] = -(signal_LT[ONE] + signal_LT[TWO]) / 2
    signal_LT[AVL] = (signal_LT[ONE] - signal_LT[III]) / 2
    signal_LT[AVF] = (signal_LT[TWO] + signal_LT[III]) / 2
    return np.asarray(signal_LT)


def flags_of(microvolt_LT: NDArray[np.float64], step: float = 1.0) -> dict[str, tuple[str, ...]]:
    return assess(np.rint(microvolt_LT / step).astype(np.int16), step, RATE_HZ, Thresholds()).flags


def put(lead: int, values: NDArray[np.float64] | float, part: slice = slice(None)) -> Change:
    def change(microvolt_LT: NDArray[np.float64]) -> None:
        microvolt_LT[lead, part] = values

    return change


def add(leads: int | list[int], values: NDArray[np.float64] | float, part: slice = slice(None)) -> Change:
    def change(microvolt_LT: NDArray[np.float64]) -> None:
        microvolt_LT[leads, part] += values

    return change


def times(leads: int | list[int], factor: float) -> Change:
    def change(microvolt_LT: NDArray[np.float64]) -> None:
        microvolt_LT[leads] *= factor

    return change


def clipped(lead: int, low: float, high: float, factor: float = 1.0) -> Change:
    def change(microvolt_LT: NDArray[np.float64]) -> None:
        microvolt_LT[lead] = np.clip(microvolt_LT[lead] * factor, low, high)

    return change


def wave(hz: float, microvolt: float) -> NDArray[np.float64]:
    return np.asarray(microvolt * np.sin(2 * np.pi * hz * TIME_S + 0.3))


NOISE = np.random.default_rng(9).normal(0, 1, 5000)
FLICKER = np.where(NOISE > 0, 2.4, -2.4)
BLOCK = (TIME_S % 1 < 0.05).astype(np.float64)  # 50 ms a second, 5 % of the samples


@pytest.mark.parametrize("step", [0.5, 1.0, 5.0])
def test_an_ordinary_record_has_no_flag(microvolt_LT: NDArray[np.float64], step: float) -> None:
    assert flags_of(microvolt_LT, step) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put(V2, 0.0), {"flat-lead": ("V2",)}),
        (put(V2, FLICKER), {"flat-lead": ("V2",)}),
        (put(V2, 700.0, slice(0, 3500)), {"flat-lead": ("V2",)}),  # a lead that comes late
        (put(V2, 1200.0), {"flat-lead": ("V2",), "dead-lead": ("V2",)}),
        (put(V2, -16_000.0 + 60 * NOISE), {"dead-lead": ("V2",)}),
        (clipped(V4, -3200.0, 3200.0, 3.0), {"saturated-lead": ("V4",)}),
        (clipped(V2, -3200.0, 3200.0, 4.0), {"saturated-lead": ("V2",)}),
        (put(V1, 9000.0, slice(0, 300)), {"saturated-lead": ("V1",)}),  # in one window of five alone
        (times(V3, 0.018), {"implausible-amplitude": ("V3",)}),
        (times(V3, 14.0), {"implausible-amplitude": ("V3",)}),
        (add(V3, 31_500.0, slice(4000, 4003)), {"implausible-amplitude": ("V3",)}),
        (add(V5, wave(50.0, 60.0)), {"powerline": ("V5",)}),
        (add(V6, wave(59.8, 70.0)), {"powerline": ("V6",)}),
        (times(AVF, 1.5), {"limb-leads-disagree": ("aVF",)}),
        (times(III, 3.0), {"limb-leads-disagree": ("I", "II", "III", "aVL", "aVF")}),
        (add(AVR, 60 * NOISE), {"limb-leads-disagree": ("aVR",)}),
    ],
)
def test_a_record_made_for_a_flag_raises_it_and_no_other(
    microvolt_LT: NDArray[np.float64], change: Change, expected: dict[str, tuple[str, ...]]
) -> None:
    change(microvolt_LT)
    assert flags_of(microvolt_LT) == expected


@pytest.mark.parametrize(
    "change",
    [
        put(V2, 7 * FLICKER),  # 34 microvolt of noise are not flat
        put(V2, 700.0, slice(0, 1900)),  # not flat for most of the time
        add(V2, 14_000.0),  # an offset of a recorder without a high-pass
        clipped(V4, -2900.0, 2900.0, 3.0),  # cut off, but where a converter with coarse steps repeats values
        add(V4, 6000.0 * np.exp(-((((TIME_S * 1.2) % 1 - 0.4) / 0.03) ** 2))),  # a tall R wave of 7.5 mV
        put(V1, 9000.0, slice(0, 40)),  # too short a rail
        times(V3, 0.05),
        times(V3, 10.0),
        add(V3, 25_000.0, slice(4000, 4003)),
        add(V5, wave(50.0, 35.0)),
        add(V5, wave(45.0, 80.0)),  # not a power line
        add(V5, 250 * NOISE),  # noise of all frequencies, with more than 50 microvolt at 50 Hz
        times(AVF, 1.03),
        add(AVR, 15 * NOISE),
        add([III, AVL], 900.0),  # baselines may differ
    ],
)
def test_a_near_miss_raises_nothing(microvolt_LT: NDArray[np.float64], change: Change) -> None:
    change(microvolt_LT)
    assert flags_of(microvolt_LT) == {}


@pytest.mark.parametrize(
    ("order", "signs", "swap"),
    [
        ((ONE, TWO, III, AVR, AVF, AVL), {}, {"aVL": "aVF", "aVF": "aVL"}),  # MIMIC-IV-ECG, its names ignored
        ((TWO, ONE, III, AVR, AVL, AVF), {}, {"I": "II", "II": "I"}),
        ((ONE, TWO, III, AVL, AVR, AVF), {}, {"aVR": "aVL", "aVL": "aVR"}),
        ((ONE, TWO, III, AVR, AVL, AVF), {AVR: -1}, {"aVR": "-aVR"}),
        ((ONE, TWO, III, AVR, AVL, AVF), {ONE: -1}, {"I": "-I"}),
        ((TWO, III, ONE, AVR, AVL, AVF), {}, {"I": "II", "II": "III", "III": "I"}),
    ],
)
@pytest.mark.parametrize("step", [1.0, 5.0])
def test_a_swap_names_what_each_lead_really_is(
    microvolt_LT: NDArray[np.float64],
    order: tuple[int, ...],
    signs: dict[int, int],
    swap: dict[str, str],
    step: float,
) -> None:
    microvolt_LT[:6] = microvolt_LT[list(order)]
    for lead, sign in signs.items():
        microvolt_LT[lead] *= sign
    found = assess(np.rint(microvolt_LT / step).astype(np.int16), step, RATE_HZ, Thresholds())
    assert found.swap == swap
    assert found.flags["lead-swap"] == tuple(swap) and set(found.flags) == {"limb-leads-disagree", "lead-swap"}


def test_electrodes_that_were_exchanged_are_not_seen(microvolt_LT: NDArray[np.float64]) -> None:
    # Left and right arm: I is inverted, II and III, aVR and aVL change places. The identities hold all the same.
    microvolt_LT[:6] = microvolt_LT[[ONE, III, TWO, AVL, AVR, AVF]]
    microvolt_LT[ONE] *= -1
    assert flags_of(microvolt_LT) == {}


def test_a_flat_limb_lead_is_no_swap(microvolt_LT: NDArray[np.float64]) -> None:
    microvolt_LT[AVF] = 0.0
    assert flags_of(microvolt_LT) == {"flat-lead": ("aVF",), "limb-leads-disagree": ("aVF",)}


def test_an_identity_missed_by_65536_counts_is_missed() -> None:
    # In int16, 20,000 + 20,000 + 25,536 is 0.
    counts_LT = np.zeros((12, 1000), dtype=np.int16)
    sign_T = np.where(np.arange(1000) % 100 < 50, 1, -1)
    counts_LT[:3] = np.array([20_000, -20_000, 25_536])[:, None] * sign_T
    assert assess(counts_LT, 0.1, 500.0, Thresholds()).flags["limb-leads-disagree"][:3] == ("I", "II", "III")


@given(counts_LT=hnp.arrays(np.int16, st.tuples(st.just(12), st.integers(1, 60)), elements=st.integers(-32768, 32767)))
def test_numbers_are_those_of_plain_loops(counts_LT: NDArray[np.int16]) -> None:
    rate_hz, step = 6.0, 2.5
    found = assess(counts_LT, step, rate_hz, Thresholds())
    rows = counts_LT.tolist()
    window = min(12, len(rows[0]))
    for lead, row in enumerate(rows):
        assert found.sum_L[lead] == sum(row) and found.sum_square_L[lead] == sum(count * count for count in row)
        windows = [row[start : start + window] for start in range(0, len(row) - window + 1, window)]
        span = statistics.median(max(values) - min(values) for values in windows)
        level = statistics.median(max(values) + min(values) for values in windows) / 2
        assert math.isclose(found.peak_to_peak_mv_L[lead], span * 0.0025, abs_tol=1e-12)
        assert math.isclose(found.level_mv_L[lead], level * 0.0025, abs_tol=1e-12)
    assert not found.line_mv_LF.any()


def test_a_million_samples_at_the_rail_sum_exactly() -> None:
    counts_LT = np.full((12, 1_000_001), -32768, dtype=np.int16)
    counts_LT[:, 0] = 3
    found = assess(counts_LT, 1.0, 500.0, Thresholds())
    assert found.sum_L.tolist() == [3 - 32768 * 10**6] * 12
    assert found.sum_square_L.tolist() == [9 + 32768**2 * 10**6] * 12


@given(
    scale=st.sampled_from([1, 30, 3000, 9000]),
    noise=st.sampled_from([0.0, 1.0, 10.0, 30.0, 200.0]),
    lead=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_limb_leads_disagree_exactly_when_an_identity_misses_by_the_tolerance(
    scale: int, noise: float, lead: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    one, two = scale * random.normal(0, 1, (2, 400)).clip(-2, 2)
    limbs = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])
    limbs[lead] += noise * random.normal(0, 1, 400).clip(-2, 2)
    counts_LT = np.zeros((12, 400), dtype=np.int16)
    counts_LT[:6] = np.rint(limbs)
    a, b, c, right, left, foot = counts_LT[:6].astype(np.float64)
    misses = [a - b + c, right + (a + b) / 2, left - (a - c) / 2, foot - (b + c) / 2]
    power = sum(float(np.var(row)) for row in (a, b, c, right, left, foot)) / 6
    allowed = max(20.0, 0.1 * math.sqrt(power))
    spread = [float(np.std(miss)) for miss in misses]
    if not any(math.isclose(value, allowed, rel_tol=1e-9) for value in spread):
        found = assess(counts_LT, 1.0, 500.0, Thresholds()).flags.get("limb-leads-disagree", ())
        named = [set(leads) for leads in (("I", "II", "III"), ("aVR",), ("aVL",), ("aVF",))]
        assert set(found) == set().union(
            *(leads for leads, value in zip(named, spread, strict=True) if value > allowed)
        )


@pytest.mark.parametrize("samples", [5000, 4096, 1250, 30_000, 7001])
@pytest.mark.parametrize("rate_hz", [257.0, 400.0, 500.0, 1000.0])
@pytest.mark.parametrize("hz", [50.0, 60.0])
def test_the_line_is_measured_in_millivolt_whatever_the_offset(samples: int, rate_hz: float, hz: float) -> None:
    time_s = np.arange(samples) / rate_hz
    line = 200 * np.cos(2 * np.pi * hz * time_s + np.arange(12)[:, None]) + 16_000 * (np.arange(12)[:, None] % 3 - 1)
    found = assess(np.rint(line).astype(np.int16), 5.0, rate_hz, Thresholds())
    at = (50.0, 60.0).index(hz)
    # Rounding to counts is noise of 0.3 counts; a window of two seconds leaves some 0.01 of it.
    np.testing.assert_allclose(found.line_mv_LF[:, at], 1.0, atol=0.002)
    np.testing.assert_allclose(found.line_mv_LF[:, 1 - at], 0.0, atol=0.002)
    assert found.flags["powerline"] == LEADS


@pytest.mark.parametrize(("rate_hz", "samples"), [(100.0, 1000), (500.0, 400)])
def test_the_line_is_left_out_where_it_cannot_be_told(rate_hz: float, samples: int) -> None:
    line = 300 * np.sin(2 * np.pi * 49.0 * np.arange(samples) / rate_hz) * np.ones((12, 1))
    found = assess(np.rint(line).astype(np.int16), 1.0, rate_hz, Thresholds())
    assert not found.line_mv_LF.any() and "powerline" not in found.flags


def test_a_view_into_a_longer_recording_is_assessed_as_its_copy(microvolt_LT: NDArray[np.float64]) -> None:
    microvolt_LT[V2, :3000] = 0.0
    counts_LT = np.rint(microvolt_LT).astype(np.int16)
    view, copy = (
        assess(part, 1.0, RATE_HZ, Thresholds()) for part in (counts_LT[:, 7:3011], counts_LT[:, 7:3011].copy())
    )
    assert view.flags == copy.flags == {"flat-lead": ("V2",)}
    np.testing.assert_array_equal(view.sum_square_L, copy.sum_square_L)


@pytest.mark.parametrize("counts_LT", [np.zeros((12, 0), np.int16), np.zeros((11, 9), np.int16), np.zeros((12, 9))])
def test_other_arrays_are_refused(counts_LT: NDArray[np.int16]) -> None:
    with pytest.raises(SignalError, match="shape"):
        assess(counts_LT, 1.0, 500.0, Thresholds())


def verdicts(counts_LT: NDArray[np.int16], step: float) -> tuple[str | None, str | None]:
    found: Assessment = assess(counts_LT, step, RATE_HZ, Thresholds())
    return implausible_gain(found, Thresholds(), counts_LT), all_leads_flat(found)


def test_gains_that_lie_are_told_from_leads_without_electrodes(microvolt_LT: NDArray[np.float64]) -> None:
    counts_LT = np.rint(microvolt_LT).astype(np.int16)
    assert verdicts(counts_LT, 1.0) == (None, None)
    for step in (1000.0, 30.0, 0.02):
        gain, _ = verdicts(counts_LT, step)
        assert gain is not None and "median peak to peak" in gain
    gain, _ = verdicts(counts_LT, 0.0005)  # 2000000/mV, as the first headers of PTB in the Challenge had it
    assert gain is not None and "counts" in gain
    for level in (0, 16_000):
        gain, flat = verdicts(np.full((12, 5000), level, dtype=np.int16), 5.0)
        assert gain is None and flat is not None


def test_ten_flat_leads_do_not_decide_what_the_other_two_are_worth(microvolt_LT: NDArray[np.float64]) -> None:
    microvolt_LT[2:] = 0.0
    assert verdicts(np.rint(microvolt_LT).astype(np.int16), 1.0) == (None, None)
    gain, _ = verdicts(np.rint(microvolt_LT).astype(np.int16), 500.0)
    assert gain is not None


def test_thresholds_survive_the_manifest_and_refuse_bounds_in_the_wrong_order() -> None:
    given = Thresholds(lead_mv=(0.1, 9.0), line_hz=(50.0,))
    assert config.from_dict(Thresholds, config.to_dict(given), "manifest") == given
    with pytest.raises(ConfigError, match="low < high"):
        Thresholds(lead_mv=(9.0, 0.1))


def test_set_a_of_2011_names_avl_and_avf_the_wrong_way_round(ecg_data: Path) -> None:
    folder = ecg_data / "cinc2011-set-a"
    judged = dict(line.split(",") for line in (folder / "quality.csv").read_text().split()[1:])
    flagged = {"acceptable": [0, 0], "unacceptable": [0, 0]}
    swaps = set()
    for record, quality in judged.items():
        path = folder / f"{record}.dat"
        if quality not in flagged or not path.exists():
            continue
        counts_LT = np.fromfile(path, dtype="<i2").reshape(-1, 12).T
        if quality == "acceptable":
            swaps.add(str(assess(np.ascontiguousarray(counts_LT), 5.0, 500.0, Thresholds()).swap))
        named_LT = np.ascontiguousarray(counts_LT[[0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]])
        flags = assess(named_LT, 5.0, 500.0, Thresholds()).flags
        assert not {"limb-leads-disagree", "lead-swap"} & set(flags)
        flagged[quality][0] += bool(flags)
        flagged[quality][1] += 1
    assert swaps == {"{'aVL': 'aVF', 'aVF': 'aVL'}"}
    share = {quality: raised / records for quality, (raised, records) in flagged.items()}
    assert share["acceptable"] < 0.1 and share["unacceptable"] > 0.8


def test_ludb_raises_nothing_and_with_the_gains_of_its_headers_its_limb_leads_disagree(ecg_data: Path) -> None:
    database = load_database("ludb")
    disagree = 0
    refs = list(database.refs(ecg_data / "ludb"))
    for ref in refs:
        counts_LT = np.asarray(database.read(ref).counts_LT)
        assert assess(counts_LT.astype(np.int16), 1.0, 500.0, Thresholds()).flags == {}, ref.record
        lines = ref.path.read_text().splitlines()[1:13]
        gains = np.array([float(line.split()[2].split("(")[0].split("/")[0]) for line in lines])[:, None]
        scaled = assess(np.rint(counts_LT / gains * 1e4).astype(np.int16), 0.1, 500.0, Thresholds())
        disagree += "limb-leads-disagree" in scaled.flags
        assert "lead-swap" not in scaled.flags, ref.record
    assert disagree > 0.95 * len(refs)
