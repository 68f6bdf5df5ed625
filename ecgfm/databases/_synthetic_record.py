"""One synthetic recording as a pure function of (seed, index): patient, heart, noise, counts.

A patient has several recordings and keeps anatomy (axis, size, shape of the waves), morphology, age, sex and,
most of the time, the rhythm. Age and sex show in the signal a little: men have larger voltages, women a longer QT,
and with age the axis turns left, T flattens and respiration moves the RR interval less.

Noise is added to nine electrodes (three on the limbs, six on the chest) and reaches the leads as in a real
recorder, so that the limb-lead identities hold with it.

Shapes: W waves, E electrodes, L leads, T samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases import _synthetic_waves as tables
from ecgfm.databases._synthetic_dipole import DOWER_L3, Waves, dipole, rotation, twelve_leads
from ecgfm.databases._synthetic_rhythm import RATES_PER_MINUTE, Beats, Breath, beats
from ecgfm.record import Sex
from ecgfm.rng import generator

RHYTHMS = tuple(RATES_PER_MINUTE)
MORPHOLOGIES = tuple(tables.MORPHOLOGIES)
RHYTHM_SHARES = (0.30, 0.14, 0.14, 0.14, 0.14, 0.14)
MORPHOLOGY_SHARES = (0.30, 0.14, 0.14, 0.14, 0.14, 0.14)
USUAL_RHYTHM_SHARE = 0.6
"""Share of a patient's recordings that show the usual rhythm for certain; the others are drawn anew."""

# Ten recordings in a row belong to four patients, who have one, two, three and four.
_PATIENT_OF_TEN = (0, 1, 1, 2, 2, 2, 3, 3, 3, 3)
_MOST_WAVES = 16

# Rows as INDEPENDENT_LEADS; columns RA, LA, LL, then the chest electrodes, against Wilson's terminal.
_ELECTRODES_LE: NDArray[np.float64] = np.zeros((8, 9))
_ELECTRODES_LE[0, :2] = -1.0, 1.0
_ELECTRODES_LE[1, :3] = -1.0, 0.0, 1.0
_ELECTRODES_LE[2:, :3] = -1 / 3
_ELECTRODES_LE[2:, 3:] = np.eye(6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Patient:
    """What the recordings of one patient share."""

    number: int
    age: int
    sex: Sex
    morphology: str
    usual_rhythm: str
    rate_share: float
    """Where the heart rate lies between the bounds of its rhythm."""
    turn: NDArray[np.float64]
    """Shape (3, 3): rotation of the heart."""
    scale_W: NDArray[np.float64]
    """Factor of each wave's amplitude."""
    width_share: float
    """Factor of every wave's width."""
    repolarisation_share: float
    """Factor of the place of ST and T."""
    breath_hz: float
    breath_depth: float
    focus: NDArray[np.float64]
    """Shape (3, 3): rotation that says where ectopic beats start."""
    focus_scale: float
    later_pr_ms: float
    """What first-degree block adds to the PR interval."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Heart:
    """One recording before noise, with what is true of it."""

    patient: Patient
    rhythm: str
    beats: Beats
    breath: Breath
    dipole_3T: NDArray[np.float64]

    @property
    def labels(self) -> tuple[str, str]:
        """Rhythm and morphology."""
        return self.rhythm, self.patient.morphology


def patient_of(index: int) -> int:
    """Return the number of the patient whom recording `index` belongs to."""
    return 4 * (index // 10) + _PATIENT_OF_TEN[index % 10]


@lru_cache(maxsize=64)
def patient(seed: int, number: int) -> Patient:
    """Return a patient."""
    rng = generator(seed, "synthetic-patient", number)
    age = int(np.clip(round(rng.normal(58, 17)), 18, 95))
    sex: Sex = "female" if rng.random() < 0.5 else "male"
    morphology = MORPHOLOGIES[rng.choice(len(MORPHOLOGIES), p=MORPHOLOGY_SHARES)]
    usual_rhythm = RHYTHMS[rng.choice(len(RHYTHMS), p=RHYTHM_SHARES)]
    leftwards = 0.25 * (age - 58) + (12 if morphology in ("lbbb", "lvh") else 0)
    frontal = float(np.clip(rng.normal(0, 10), -22, 22)) - leftwards
    # The last leads' vectors change fast with rotation in the horizontal plane: more would unmake a label.
    horizontal = float(np.clip(rng.normal(0, 6), -12, 12))
    size = math.exp(float(np.clip(rng.normal(0, 0.13), -0.25, 0.25))) * (1.06 if sex == "male" else 0.94)
    # Voltage is what these two labels are about: the size of the body must not unmake them.
    size = max(size, 0.95) if morphology == "lvh" else min(size, 1.05) if morphology == "low-voltage" else size
    scale_W = size * np.exp(np.clip(0.10 * rng.standard_normal(_MOST_WAVES), -0.2, 0.2))
    parts = [wave.part for wave in tables.MORPHOLOGIES[morphology]]
    repolarising = [place for place, part in enumerate(parts) if part in ("ST", "T")]
    # ST and T are one process: their waves grow together.
    scale_W[repolarising] = size * math.exp(0.15 * rng.standard_normal()) * (1 - 0.004 * (age - 58))
    depth = 0.045 * math.exp(0.3 * rng.standard_normal()) * (1.4 - 0.01 * (age - 18))
    return Patient(
        number=number,
        age=age,
        sex=sex,
        morphology=morphology,
        usual_rhythm=usual_rhythm,
        rate_share=float(rng.uniform(0.08, 0.92)),
        turn=rotation(frontal, horizontal),
        scale_W=scale_W,
        width_share=float(np.clip(rng.normal(1.0, 0.05), 0.9, 1.1)),
        repolarisation_share=float(np.clip(rng.normal(1.0, 0.03), 0.94, 1.06)) * (1.025 if sex == "female" else 0.985),
        breath_hz=float(rng.uniform(0.17, 0.30)),
        breath_depth=depth,
        focus=rotation(float(rng.uniform(-80, 130)), float(rng.uniform(-110, 110))),
        focus_scale=float(rng.uniform(0.75, 1.15)),
        later_pr_ms=float(rng.uniform(75, 150)),
    )


def heart(seed: int, index: int, *, rate_hz: float = 500.0, seconds: float = 10.0) -> Heart:
    """Return recording `index` before noise.

    Args:
        seed: Of the database.
        index: Of the recording, from 0.
        rate_hz: Samples per second.
        seconds: Length.
    """
    owner = patient(seed, patient_of(index))
    rng = generator(seed, "synthetic-heart", index)
    rhythm = owner.usual_rhythm
    if rng.random() >= USUAL_RHYTHM_SHARE:
        rhythm = RHYTHMS[rng.choice(len(RHYTHMS), p=RHYTHM_SHARES)]
    low, high = RATES_PER_MINUTE[rhythm]
    share = float(np.clip(owner.rate_share + 0.08 * rng.standard_normal(), 0.0, 1.0))
    breath = Breath(rate_hz=owner.breath_hz, phase=float(rng.uniform(0, 2 * np.pi)), depth=owner.breath_depth)
    train = beats(rhythm, low + (high - low) * share, breath, seconds, rng)
    samples = round(seconds * rate_hz)
    # A day's posture and electrodes differ from another's by a few degrees.
    turn = rotation(float(rng.normal(0, 3)), float(rng.normal(0, 2))) @ owner.turn
    own = ~train.ectopic_N
    total_3T = dipole(_own_waves(owner, rhythm, turn), train.peaks_s_N[own], train.intervals_s_N[own], samples, rate_hz)
    if train.ectopic_N.any():
        ectopic = _ectopic_waves(owner)
        total_3T += dipole(
            ectopic, train.peaks_s_N[train.ectopic_N], train.intervals_s_N[train.ectopic_N], samples, rate_hz
        )
    time_s = np.arange(samples) / rate_hz
    total_3T *= 1 + 0.04 * breath.at(time_s)
    if rhythm == "atrial-fibrillation":
        total_3T += _fibrillatory_waves(time_s, rng)
    return Heart(patient=owner, rhythm=rhythm, beats=train, breath=breath, dipole_3T=total_3T)


def synthesise(
    seed: int, index: int, *, rate_hz: float = 500.0, seconds: float = 10.0
) -> tuple[NDArray[np.int16], Heart]:
    """Return the counts of recording `index`, shape (12, T) in the order of `ecgfm.leads.LEADS`, and its heart.

    The same arguments give the same counts, in any order and any process.
    """
    source = heart(seed, index, rate_hz=rate_hz, seconds=seconds)
    rng = generator(seed, "synthetic-noise", index)
    noise_ET = _noise(source.breath, source.dipole_3T.shape[1], rate_hz, rng)
    return twelve_leads(DOWER_L3 @ source.dipole_3T + _ELECTRODES_LE @ noise_ET), source


def _own_waves(owner: Patient, rhythm: str, turn: NDArray[np.float64]) -> Waves:
    """Return the waves of the beats that come down the patient's conduction system."""
    table = tables.MORPHOLOGIES[owner.morphology]
    scale_W = owner.scale_W[: len(table)]
    if rhythm == "atrial-fibrillation":
        scale_W = scale_W[[wave.part != "P" for wave in table]]
        table = tables.without_p(table)
    elif rhythm == "first-degree-av-block":
        table = tables.with_pr(table, owner.later_pr_ms)
    waves = tables.as_waves(table, scale_W)
    late_W = np.array([wave.part in ("ST", "T") for wave in table])
    return Waves(
        centre_s_W=waves.centre_s_W * np.where(late_W, owner.repolarisation_share, owner.width_share),
        width_s_W=waves.width_s_W * owner.width_share,
        peak_mv_W3=waves.peak_mv_W3 @ turn.T,
        stretches_W=waves.stretches_W,
    )


def _ectopic_waves(owner: Patient) -> Waves:
    waves = tables.as_waves(tables.ECTOPIC, np.full(len(tables.ECTOPIC), owner.focus_scale))
    return Waves(
        centre_s_W=waves.centre_s_W,
        width_s_W=waves.width_s_W,
        peak_mv_W3=waves.peak_mv_W3 @ owner.focus.T,
        stretches_W=waves.stretches_W,
    )


def _fibrillatory_waves(time_s: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the atria's waves, shape (3, T): 5 to 7.5 Hz with two overtones, of wandering rate and size.

    Stridh and Sornmo 2001, IEEE Trans Biomed Eng 48:105, simulate them as such a sawtooth.
    """
    low_hz, drift_hz = rng.uniform(5.0, 7.5), rng.uniform(0.1, 0.3)
    phase = 2 * np.pi * low_hz * time_s + rng.uniform(0, 2 * np.pi)
    phase += rng.uniform(0.8, 2.0) * np.sin(2 * np.pi * drift_hz * time_s + rng.uniform(0, 2 * np.pi))
    swell = 1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * time_s + rng.uniform(0, 2 * np.pi))
    saw = np.sin(phase) - 0.45 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)
    direction_3 = np.array([0.00, 0.055, -0.065]) + 0.01 * rng.standard_normal(3)
    return np.asarray(rng.uniform(0.6, 1.2) * direction_3[:, None] * (swell * saw))


def _noise(breath: Breath, samples: int, rate_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the noise of the electrodes, shape (9, T), in millivolt.

    Baseline wander (respiration and slower drifts), powerline, and muscle noise between 15 and 120 Hz; how much of
    each is drawn by recording.
    """
    time_s = np.arange(samples) / rate_hz
    muscle_mv = 0.005 * math.exp(min(0.7 * rng.standard_normal(), 1.4))
    wander_mv = 0.03 * math.exp(min(0.7 * rng.standard_normal(), 1.4))
    powerline_mv = 0.003 * math.exp(min(rng.standard_normal(), 1.6))
    powerline_hz = 50.0 if rng.random() < 0.7 else 60.0
    slow_3T = np.stack(
        [breath.at(time_s)]
        + [np.sin(2 * np.pi * rng.uniform(0.03, 0.4) * time_s + rng.uniform(0, 2 * np.pi)) for _ in range(2)]
    )
    noise_ET = (wander_mv * rng.standard_normal((9, 3))) @ slow_3T
    if powerline_hz < rate_hz / 2:
        angle = 2 * np.pi * powerline_hz * time_s
        pair_2T = np.stack([np.sin(angle), np.cos(angle)])
        noise_ET += (powerline_mv * rng.standard_normal((9, 2))) @ pair_2T
    strength_E1 = muscle_mv * np.exp(0.3 * rng.standard_normal((9, 1)))
    swell = 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * time_s + rng.uniform(0, 2 * np.pi))
    return np.asarray(noise_ET + strength_E1 * swell * _muscle(samples, rate_hz, rng))


def _muscle(samples: int, rate_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return coloured noise of unit strength, shape (9, T), made in the frequency domain."""
    frequency_hz_F = np.fft.rfftfreq(samples, 1 / rate_hz)
    # Second-order slopes on both sides; the electromyogram of the skin has its power between 15 and 120 Hz.
    rise_F = frequency_hz_F**2 / (frequency_hz_F**2 + 15.0**2)
    shape_F = rise_F / (1 + (frequency_hz_F / 120.0) ** 2)
    shape_F *= math.sqrt(samples / (2 * (shape_F**2).sum())) * math.sqrt(samples / 2)
    parts_E2F = rng.standard_normal((9, 2, len(frequency_hz_F)))
    spectrum_EF = (parts_E2F[:, 0] + 1j * parts_E2F[:, 1]) * shape_F
    return np.fft.irfft(spectrum_EF, n=samples, axis=-1)
