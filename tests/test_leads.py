"""Lead names, order, and the identities of Einthoven and Goldberger."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfm.errors import LeadError
from ecgfm.leads import DERIVED, LEADS, arrange, canonical_name, derivable, positions

ORDERS = st.permutations(LEADS)


@given(order=ORDERS, upper=st.booleans())
def test_order_and_case_of_the_input_change_nothing(order: list[str], upper: bool) -> None:
    signal_LT = np.arange(12 * 3).reshape(12, 3)
    mixed_LT = signal_LT[[LEADS.index(lead) for lead in order]]
    names = [lead.upper() if upper else f" {lead.lower()} " for lead in order]
    np.testing.assert_array_equal(arrange(mixed_LT, names), signal_LT)


def test_mimic_order_is_matched_by_name() -> None:
    names = ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"]
    arranged = arrange(np.arange(12)[:, None], names)
    assert arranged[:, 0].tolist() == [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]


def test_frank_leads_are_passed_over() -> None:
    names = ["vx", *LEADS, "vy", "vz"]
    np.testing.assert_array_equal(arrange(np.arange(15)[:, None], names)[:, 0], np.arange(1, 13))


@given(data=st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=20))
def test_derived_leads_are_those_of_the_electrodes(data: list[tuple[float, float]]) -> None:
    # From potentials: with the left leg at 0, I = left - right, II = -right; the augmented leads are each electrode
    # against the mean of the other two.
    left, right = np.array(data).T
    leg = np.zeros_like(left)
    truth = {
        "I": left - right,
        "II": leg - right,
        "III": leg - left,
        "aVR": right - (left + leg) / 2,
        "aVL": left - (right + leg) / 2,
        "aVF": leg - (left + right) / 2,
    }
    chest = [f"V{number}" for number in range(1, 7)]
    names = ["I", "II", *chest]
    arranged = arrange(np.stack([truth["I"], truth["II"], *[left] * 6]), names)
    for index, lead in enumerate(LEADS[:6]):
        np.testing.assert_allclose(arranged[index], truth[lead], atol=1e-13)


@given(missing=st.sets(st.sampled_from(sorted(DERIVED)), min_size=1))
def test_only_what_is_missing_is_derived(missing: set[str]) -> None:
    names = [lead for lead in LEADS if lead not in missing]
    assert set(derivable(names)) == missing
    signal_LT = np.random.default_rng(0).normal(size=(len(names), 7))
    arranged = arrange(signal_LT, names)
    for row, name in zip(signal_LT, names, strict=True):
        np.testing.assert_array_equal(arranged[LEADS.index(name)], row)


def test_complete_leads_keep_their_dtype() -> None:
    assert arrange(np.zeros((12, 3), np.int16), LEADS).dtype == np.int16


def test_leading_dimensions_are_kept() -> None:
    batch_BLT = np.random.default_rng(0).normal(size=(4, 8, 5))
    names = ["I", "II", *LEADS[6:]]
    arranged = arrange(batch_BLT, names)
    assert arranged.shape == (4, 12, 5)
    for one_LT, two_LT in zip(batch_BLT, arranged, strict=True):
        np.testing.assert_array_equal(arrange(one_LT, names), two_LT)


@pytest.mark.parametrize("lost", ["I", "II", "V1", "V6"])
def test_a_lead_that_nothing_gives_is_refused_by_name(lost: str) -> None:
    names = [lead for lead in LEADS if lead != lost]
    with pytest.raises(LeadError, match=f"missing {lost} among"):
        derivable(names)


def test_leads_that_are_not_wanted_may_be_missing() -> None:
    signal_LT = np.random.default_rng(0).normal(size=(3, 7))
    names = ["V1", "ii", "I"]
    assert derivable(names, ("II", "aVL", "V1")) == ("aVL",)
    arranged = arrange(signal_LT, names, ("II", "aVL", "V1"))
    np.testing.assert_allclose(arranged, [signal_LT[1], signal_LT[2] - signal_LT[1] / 2, signal_LT[0]], atol=1e-15)
    np.testing.assert_array_equal(arrange(signal_LT[:1], ["V1"], ["V1"]), signal_LT[:1])
    with pytest.raises(LeadError, match="missing aVL among"):
        derivable(["V1", "II"], ("II", "aVL", "V1"))


def test_limb_leads_need_both_i_and_ii() -> None:
    with pytest.raises(LeadError, match="missing II, aVF"):
        derivable([lead for lead in LEADS if lead not in ("II", "aVF")])


def test_a_lead_named_twice_is_refused_with_both_places() -> None:
    with pytest.raises(LeadError, match="aVR is named twice, at positions 3 and 12"):
        positions([*LEADS, "AVR"])


@pytest.mark.parametrize("shape", [(11, 5), (12,), (5, 12)])
def test_names_must_fit_the_signal(shape: tuple[int, ...]) -> None:
    with pytest.raises(LeadError, match="12 lead names for a signal of shape"):
        arrange(np.zeros(shape), LEADS)


@pytest.mark.parametrize("name", ["vx", "V7", "MLII", "", "aVR2", "lead I"])
def test_a_name_that_is_none_of_the_twelve_is_not_guessed(name: str) -> None:
    assert canonical_name(name) is None


def test_canonical_names_differ_without_case() -> None:
    for one, two in itertools.combinations(LEADS, 2):
        assert one.lower() != two.lower()
