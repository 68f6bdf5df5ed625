"""Parts and label shares: by patient, seeded, nested, and with every label in every part where there are enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfm.errors import ConfigError
from ecgfm.eval.splits import TEST, TRAIN, VALIDATION, check_apart, label_share, parts_of, seeded_folds


def cohort(seed: int, patients: int = 300) -> tuple[np.ndarray, list[str]]:
    """Return three labels (the last one of 8 % of the patients) and patients of one to four records."""
    draw = np.random.default_rng(seed)
    ill = draw.random((patients, 3)) < np.asarray([0.5, 0.2, 0.08])
    who = np.repeat(np.arange(patients), draw.integers(1, 5, patients))
    draw.shuffle(who)
    return ill[who].astype(np.float64), [f"p{number}" for number in who]


@pytest.mark.parametrize("seed", range(3))
def test_a_patient_is_in_one_fold_and_labels_are_spread(seed: int) -> None:
    target, patients = cohort(seed)
    fold = seeded_folds(target, patients, folds=10, seed=seed)
    assert set(fold) == set(range(1, 11))
    assert len(set(zip(patients, fold.tolist()))) == len(set(patients))
    names = np.asarray(patients)
    for number in range(1, 11):
        inside = fold == number
        assert inside.mean() == pytest.approx(0.1, abs=0.03)
        assert target[inside, 0].mean() == pytest.approx(target[:, 0].mean(), abs=0.15)
        # Two dozen patients or so have the rarest label: each fold has one of them.
        assert len(np.unique(names[inside & (target[:, 2] == 1)])) >= 1


def test_folds_follow_the_seed_alone() -> None:
    target, patients = cohort(0)
    one, same, other = (seeded_folds(target, patients, folds=5, seed=seed) for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


def test_labels_rarer_than_the_folds_are_spread_without_a_complaint(recwarn: pytest.WarningsRecorder) -> None:
    target = np.zeros((30, 4))
    target[:2, 0] = target[2:5, 1] = target[5:7, 2] = 1
    fold = seeded_folds(target, [f"p{number}" for number in range(30)], folds=10, seed=0)
    assert set(np.bincount(fold)[1:]) == {3} and not recwarn.list
    alone = seeded_folds(np.zeros((12, 1)), list("abcdefghijkl"), folds=3, seed=0)
    assert set(np.bincount(alone)[1:]) == {4}


def test_numbers_are_spread_in_bands() -> None:
    draw = np.random.default_rng(0)
    age = draw.gamma(4, 15, size=(400, 1))
    fold = seeded_folds(age, [str(number) for number in range(400)], folds=5, seed=0, regression=True)
    means = [age[fold == number].mean() for number in range(1, 6)]
    # Unstratified means of 80 ages scatter by 30 / sqrt(80) = 3.4.
    assert np.std(means) < 2.0


def test_rotations_test_every_fold_once() -> None:
    fold = np.arange(1, 11)
    tested = []
    for rotation in range(10):
        parts = parts_of(fold, folds=10, rotation=rotation)
        assert (parts == TEST).sum() == (parts == VALIDATION).sum() == 1 and (parts == TRAIN).sum() == 8
        tested += fold[parts == TEST].tolist()
    assert sorted(tested) == list(range(1, 11))
    published = parts_of(fold, folds=10)
    assert published[8] == VALIDATION and published[9] == TEST
    with pytest.raises(ConfigError, match="rotation 10"):
        parts_of(fold, folds=10, rotation=10)


@given(st.integers(0, 10), st.lists(st.floats(0.005, 1.0), min_size=2, max_size=4))
def test_shares_are_nested_whole_patients_and_touch_the_training_part_alone(seed: int, shares: list[float]) -> None:
    _, patients = cohort(1, patients=90)
    names = np.asarray(patients)
    split = np.where(names < "p3", TEST, TRAIN)
    train = len(np.unique(names[split == TRAIN]))
    before = None
    for share in sorted(shares):
        kept = label_share(split, patients, share=share, seed=seed)
        assert kept[split == TEST].all()
        inside = np.unique(names[kept & (split == TRAIN)])
        assert len(inside) == int(np.ceil(share * train - 1e-9)) >= 1
        assert not np.isin(names[~kept], inside).any()
        if before is not None:
            assert (kept | ~before).all()
        before = kept


def test_a_share_does_not_depend_on_the_order_of_the_records_but_on_the_seed() -> None:
    _, patients = cohort(2)
    names = np.asarray(patients)
    split = np.full(len(names), TRAIN)
    order = np.random.default_rng(0).permutation(len(names))
    kept = label_share(split, patients, share=0.1, seed=0)
    assert (label_share(split, names[order].tolist(), share=0.1, seed=0) == kept[order]).all()
    assert (label_share(split, patients, share=0.1, seed=1) != kept).any()
    with pytest.raises(ConfigError, match="label-share 0"):
        label_share(split, patients, share=0.0, seed=0)


def test_what_cannot_be_parted_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 patients in 3 folds"):
        seeded_folds(np.zeros((4, 1)), ["a", "a", "b", "b"], folds=3, seed=0)
    with pytest.raises(ConfigError, match="a is in train and in test"):
        check_apart(np.asarray([TRAIN, TEST, TEST]), ["a", "b", "a"], "task x")
