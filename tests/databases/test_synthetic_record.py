"""What a synthetic recording must show: rates, rhythms, morphologies, plausible amplitudes, exact repetition."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
import scipy.signal
from numpy.typing import NDArray

from ecgfm.databases._synthetic_dipole import DOWER_L3
from ecgfm.databases._synthetic_record import MORPHOLOGIES, RHYTHMS, Heart, patient, patient_of, synthesise
from ecgfm.leads import DERIVED, LEADS
from ecgfm.signal.flags import Thresholds, assess

RECORDS = 240
RATE_HZ = 500.0
# A rate that is counted, in beats per minute: the definitions of bradycardia and tachycardia.
DEFINED = {"sinus": (60, 100), "sinus-bradycardia": (0, 60), "sinus-tachycardia": (100, 200)}


@cache
def made() -> tuple[tuple[NDArray[np.int16], Heart], ...]:
    return tuple(synthesise(7, index) for index in range(RECORDS))


def found_peaks_s(counts_LT: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return R peaks by a detector of its own, which is blind to ectopic beats: the steepness of all leads."""
    steep_T = np.abs(np.diff(counts_LT.astype(np.float64), axis=1, n=1)).sum(axis=0)
    band = scipy.signal.butter(2, [0.5, 8], "bandpass", fs=RATE_HZ, output="sos")
    smooth_T = scipy.signal.sosfiltfilt(band, np.convolve(steep_T, np.ones(60) / 60, "same"))
    height = 0.35 * np.quantile(smooth_T, 0.985)
    return np.asarray(scipy.signal.find_peaks(smooth_T, height=height, distance=int(0.27 * RATE_HZ))[0] / RATE_HZ)


def average_beat_mv(one: Heart) -> dict[str, NDArray[np.float64]]:
    """Return the median beat of each lead without noise, from 450 ms before R to 450 ms after it."""
    independent_LT = DOWER_L3 @ one.dipole_3T
    own_s = one.beats.peaks_s_N[~one.beats.ectopic_N]
    starts = [round((peak - 0.45) * 500) for peak in own_s if 0.5 < peak < 9.5]
    beat_LS = np.median([independent_LT[:, start : start + 450] for start in starts], axis=0)
    by_name = dict(zip(("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"), beat_LS, strict=True))
    return by_name | {name: a * by_name["I"] + b * by_name["II"] for name, (a, b) in DERIVED.items()}


def at(beat: NDArray[np.float64], low_ms: float, high_ms: float) -> NDArray[np.float64]:
    return beat[round((450 + low_ms) / 2) : round((450 + high_ms) / 2)]


def with_labels(rhythms: tuple[str, ...], morphology: str) -> list[dict[str, NDArray[np.float64]]]:
    found = [
        average_beat_mv(one) for _, one in made() if one.rhythm in rhythms and one.patient.morphology == morphology
    ]
    assert len(found) >= 3, (rhythms, morphology)
    return found


def width_ms(one: Heart, peaks_s: NDArray[np.float64]) -> float:
    """Return how long the dipole stays above a third of its largest value around the given beats."""
    length_T = np.linalg.norm(one.dipole_3T, axis=0)
    starts = [round((peak - 0.15) * 500) for peak in peaks_s if 0.2 < peak < 9.8]
    return float(np.median([2 * (length_T[i : i + 150] > length_T[i : i + 150].max() / 3).sum() for i in starts]))


CONDUCTED = ("sinus", "sinus-bradycardia", "first-degree-av-block")


def test_the_same_seed_and_index_give_the_same_counts_in_any_order() -> None:
    for index in (200, 3, 77):
        patient.cache_clear()
        np.testing.assert_array_equal(synthesise(7, index)[0], made()[index][0])


def test_another_seed_or_index_gives_other_counts_and_patients() -> None:
    assert not np.array_equal(synthesise(8, 3)[0], made()[3][0])
    assert not np.array_equal(patient(7, 5).scale_W, patient(8, 5).scale_W)
    assert len({counts.tobytes() for counts, _ in made()}) == RECORDS


def test_recordings_of_a_patient_share_what_the_patient_has() -> None:
    assert [patient_of(index) for index in range(10)] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert sorted(Counter(patient_of(index) for index in range(1000)).values()) == sorted([1, 2, 3, 4] * 100)
    for index, (_, one) in enumerate(made()):
        assert one.patient.number == patient_of(index)
        again = patient(7, patient_of(index))
        assert (one.patient.age, one.patient.sex, one.patient.morphology) == (again.age, again.sex, again.morphology)
    # Anatomy shows: the average beats of one patient are nearer to each other than to other patients' of one label.
    normal = [one for _, one in made() if one.labels == ("sinus", "normal")]
    beats = [np.concatenate([at(average_beat_mv(one)[lead], -50, 70) for lead in LEADS]) for one in normal]
    same: list[float] = []
    other: list[float] = []
    for place, (one, beat) in enumerate(zip(normal, beats, strict=True)):
        for second, beat2 in zip(normal[:place], beats[:place], strict=True):
            distance = float(np.abs(beat - beat2).mean())
            (same if second.patient.number == one.patient.number else other).append(distance)
    assert len(same) > 5 and np.median(same) < 0.5 * np.median(other)


def test_limb_lead_identities_hold_in_every_count_with_noise() -> None:
    for counts_LT, _ in made():
        one, two, three, avr, avl, avf = counts_LT[:6].astype(np.int64)
        assert (three == two - one).all() and (2 * avr == -one - two).all()
        assert (2 * avl == 2 * one - two).all() and (2 * avf == 2 * two - one).all()


def test_labels_are_balanced_enough_to_probe() -> None:
    hearts = [patient(0, number) for number in range(400)]
    morphologies = Counter(one.morphology for one in hearts)
    rhythms = Counter(one.rhythm for _, one in made())
    assert set(morphologies) == set(MORPHOLOGIES) and min(morphologies.values()) >= 0.09 * 400
    assert set(rhythms) == set(RHYTHMS) and min(rhythms.values()) >= 0.07 * RECORDS
    assert 0.4 < sum(one.sex == "female" for one in hearts) / 400 < 0.6
    assert min(one.age for one in hearts) >= 18 and max(one.age for one in hearts) <= 95


def test_counted_beats_are_those_that_were_made() -> None:
    wrong = 0
    for counts_LT, one in made():
        # Beats at the very ends may be cut in half.
        true_s = [peak for peak in one.beats.peaks_s_N[~one.beats.ectopic_N] if 0.3 < peak < 9.7]
        found_s = found_peaks_s(counts_LT)
        missed = sum(np.abs(found_s - peak).min() > 0.08 for peak in true_s)
        invented = sum(np.abs(one.beats.peaks_s_N - peak).min() > 0.08 for peak in found_s if 0.3 < peak < 9.7)
        wrong += int(missed + invented > 0)
    # The detector is simple: it may fail in a few noisy records.
    assert wrong <= 0.05 * RECORDS, wrong


def test_counted_rate_is_the_labelled_one() -> None:
    inside, total = 0, 0
    for counts_LT, one in made():
        if one.rhythm in DEFINED:
            low, high = DEFINED[one.rhythm]
            rate = 60 / float(np.mean(np.diff(found_peaks_s(counts_LT))))
            inside, total = inside + (low < rate < high), total + 1
    assert total > 80 and inside >= 0.95 * total, (inside, total)


def test_fibrillation_is_irregular_and_has_no_p_wave_while_sinus_is_regular_and_has_one() -> None:
    spread: dict[str, list[float]] = {"sinus": [], "atrial-fibrillation": []}
    p_mv: dict[str, list[float]] = {"sinus": [], "atrial-fibrillation": []}
    for counts_LT, one in made():
        if one.rhythm in spread:
            intervals_s = np.diff(found_peaks_s(counts_LT))
            spread[one.rhythm].append(float(intervals_s.std() / intervals_s.mean()))
            # P is tallest in II; the segment after it is the zero.
            beat = average_beat_mv(one)["II"]
            p_mv[one.rhythm].append(float(at(beat, -200, -90).max() - at(beat, -78, -66).mean()))
    assert np.quantile(spread["sinus"], 0.9) < 0.08 < 0.12 < np.quantile(spread["atrial-fibrillation"], 0.1)
    # The fibrillatory waves do not quite average out over a dozen beats.
    assert np.quantile(p_mv["sinus"], 0.1) > 0.07 > np.quantile(p_mv["atrial-fibrillation"], 0.7)


def test_atria_fibrillate_between_4_and_9_hz() -> None:
    seen = 0
    for _, one in made():
        if one.rhythm != "atrial-fibrillation":
            continue
        v1 = (DOWER_L3 @ one.dipole_3T)[2]
        # Between T and the next QRS only the atria are at work; the longest such pause shows two waves or more.
        places = np.flatnonzero(np.diff(one.beats.peaks_s_N) > 0.95)
        for start_s, stop_s in zip(one.beats.peaks_s_N[places] + 0.5, one.beats.peaks_s_N[places + 1] - 0.1):
            pause = v1[max(0, round(start_s * 500)) : max(0, round(stop_s * 500))]
            if len(pause) > 150:
                pause = pause - pause.mean()
                power = np.abs(np.fft.rfft(pause * np.hanning(len(pause)), 4000)) ** 2
                assert 4 < 500 / 4000 * int(power.argmax()) < 9 and np.ptp(pause) > 0.05
                seen += 1
    assert seen >= 10


def test_first_degree_block_has_a_pr_interval_above_200_ms_and_sinus_below() -> None:
    seen: Counter[str] = Counter()
    for rhythm, low_ms, high_ms in (("sinus", 110, 200), ("first-degree-av-block", 200, 400)):
        for _, one in made():
            # Low voltage keeps its P, bundle branch blocks move the start of QRS: normal hearts are simplest.
            # At higher rates the T before reaches into the window.
            if one.labels == (rhythm, "normal") and np.median(one.beats.intervals_s_N) > 0.75:
                top = -330 + 2 * int(at(average_beat_mv(one)["II"], -330, -80).argmax())
                seen[rhythm] += 1
                # P begins some 45 ms before its top, QRS some 40 ms before R.
                assert low_ms < -top + 45 - 40 < high_ms, (rhythm, top)
    assert min(seen["sinus"], seen["first-degree-av-block"]) >= 3


def test_ectopic_beats_come_early_are_wide_and_are_followed_by_a_compensatory_pause() -> None:
    seen = 0
    for _, one in made():
        if one.rhythm != "ventricular-ectopy":
            assert not one.beats.ectopic_N.any()
            continue
        within = [p for p, e in zip(one.beats.peaks_s_N, one.beats.ectopic_N, strict=True) if e and 0 < p < 9.9]
        assert within
        peaks_s, ectopic_N = one.beats.peaks_s_N, one.beats.ectopic_N
        usual_s = float(np.median(np.diff(peaks_s)[~ectopic_N[1:] & ~ectopic_N[:-1]]))
        for place in np.flatnonzero(ectopic_N[1:-1]) + 1:
            before_s, after_s = peaks_s[place] - peaks_s[place - 1], peaks_s[place + 1] - peaks_s[place]
            assert before_s < 0.8 * usual_s and after_s > 1.1 * usual_s
            # Respiration changes the interval by some percent.
            assert before_s + after_s == pytest.approx(2 * usual_s, rel=0.25)
            seen += 1
        if one.patient.morphology == "normal":
            own, ectopic = (width_ms(one, peaks_s[ectopic_N == kind]) for kind in (False, True))
            assert ectopic > 80 > 60 > own
    assert seen > 40


def test_normal_r_wave_grows_over_the_chest_and_t_is_upright() -> None:
    for beat in with_labels(CONDUCTED, "normal"):
        qrs = {lead: at(beat[lead], -50, 70) for lead in LEADS}
        r_over_s = [qrs[lead].max() / -qrs[lead].min() for lead in ("V1", "V2", "V3", "V4", "V5")]
        assert r_over_s[0] < 0.8 and r_over_s[4] > 1.2 and r_over_s == sorted(r_over_s)
        assert qrs["aVR"].min() < -0.3 < 0.3 < qrs["II"].max()
        for lead in ("II", "V3", "V4", "V5", "V6"):
            assert at(beat[lead], 180, 400).max() > 0.05


def test_left_bundle_branch_block_is_broad_in_the_lateral_leads_and_negative_in_v1() -> None:
    for beat in with_labels(CONDUCTED, "lbbb"):
        v1, v6, one = (at(beat[lead], -90, 110) for lead in ("V1", "V6", "I"))
        assert v1.min() < -0.7 and at(beat["V1"], -90, 70).max() < 0.15 * -v1.min()
        assert v6.max() > 0.5 and v6.min() > -0.15 * v6.max() and one.max() > 0.2
        # Broad: above a third of its height for more than 80 ms, where a normal R is so for 25.
        assert 2 * (v6 > v6.max() / 3).sum() > 80
        # T is turned away from QRS.
        assert at(beat["V1"], 180, 400).max() > 0.15 and at(beat["V6"], 180, 400).min() < -0.1


def test_right_bundle_branch_block_ends_in_a_late_r_in_v1_and_a_wide_s_in_v6() -> None:
    for beat in with_labels(CONDUCTED, "rbbb"):
        first, dip = at(beat["V1"], -45, 0).max(), at(beat["V1"], -10, 40).min()
        late = at(beat["V1"], 40, 110).max()
        assert first > 0.1 and dip < first - 0.3 and late > 0.4
        assert at(beat["V6"], 40, 110).min() < -0.2 and at(beat["I"], 40, 110).min() < -0.1


def test_hypertrophy_has_high_voltage_and_low_voltage_has_little() -> None:
    # Sokolow and Lyon: S in V1 with the larger R of V5 and V6, above 3.5 mV. Low voltage: limb leads below 0.5 mV.
    sokolow = {
        name: [max(beat["V5"].max(), beat["V6"].max()) - beat["V1"].min() for beat in with_labels(CONDUCTED, name)]
        for name in ("lvh", "normal", "low-voltage")
    }
    assert np.mean(np.array(sokolow["lvh"]) > 3.5) > 0.7 and np.mean(np.array(sokolow["normal"]) < 3.5) > 0.9
    for beat in with_labels(CONDUCTED, "low-voltage"):
        assert max(np.ptp(at(beat[lead], -60, 80)) for lead in LEADS[:6]) < 0.7
    spans = [np.median([np.ptp(at(b[lead], -60, 80)) for lead in LEADS[:6]]) for b in with_labels(CONDUCTED, "normal")]
    assert min(spans) > 0.4 and np.median(spans) > 0.6
    for beat in with_labels(CONDUCTED, "lvh"):
        assert at(beat["V6"], 180, 400).min() < -0.03


def test_inferior_st_is_raised_with_a_reciprocal_change_in_avl() -> None:
    for beat in with_labels(CONDUCTED, "inferior-st-elevation"):
        st = {lead: float(at(beat[lead], 100, 130).mean() - at(beat[lead], -70, -64).mean()) for lead in LEADS}
        assert min(st["II"], st["III"], st["aVF"]) > 0.1 and st["aVL"] < -0.1
    for beat in with_labels(CONDUCTED, "normal"):
        assert abs(at(beat["III"], 90, 110).mean()) < 0.08


@pytest.mark.parametrize(("rate_hz", "seconds"), [(500.0, 10.0), (100.0, 10.0), (257.0, 30.0), (1000.0, 5.0)])
def test_every_record_passes_the_quality_check_at_any_rate_and_length(rate_hz: float, seconds: float) -> None:
    for index in range(RECORDS if rate_hz == RATE_HZ else 24):
        counts_LT = (
            made()[index][0] if rate_hz == RATE_HZ else synthesise(7, index, rate_hz=rate_hz, seconds=seconds)[0]
        )
        assert counts_LT.shape == (12, round(rate_hz * seconds)) and counts_LT.dtype == np.int16
        assert assess(counts_LT, 1.0, rate_hz, Thresholds()).flags.keys() <= {"powerline"}


def test_amplitudes_are_those_of_an_electrocardiogram() -> None:
    for counts_LT, one in made():
        high_pass = scipy.signal.butter(2, 1.0, "highpass", fs=RATE_HZ, output="sos")
        steady_LT = scipy.signal.sosfiltfilt(high_pass, counts_LT * 1e-3, axis=1)
        largest = float(np.ptp(steady_LT, axis=1).max())
        low, high = (0.25, 2.8) if one.patient.morphology == "low-voltage" else (0.8, 8.0)
        if one.rhythm == "ventricular-ectopy":
            high = max(high, 6.0)
        assert low < largest < high, one.labels
    normal = [np.ptp(counts * 1e-3, axis=1).max() for counts, one in made() if one.labels == ("sinus", "normal")]
    assert 1.0 < np.median(normal) < 3.5


def test_noise_varies_and_stays_below_the_beats() -> None:
    noise_mv = []
    for counts_LT, one in made()[:60]:
        rest_LT = counts_LT[[0, 1, 6, 7, 8, 9, 10, 11]] * 1e-3 - DOWER_L3 @ one.dipole_3T
        noise_mv.append(float(np.median(rest_LT.std(axis=1))))
    assert 0.01 < np.quantile(noise_mv, 0.1) < 0.5 * np.quantile(noise_mv, 0.9) < 0.15
