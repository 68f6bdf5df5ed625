"""Parts for training, validation and test, by patient, where a database publishes none; and shares of the labels.

Folds are numbered 1 to `folds` and stratified by label. One of them is the test part and the next one the validation
part, so that `rotation` 0 to folds - 1 tests every record once.

Shapes: N records, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from ecgfm.errors import ConfigError
from ecgfm.rng import derive, generator

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
AGE_BANDS = 5


def seeded_folds(
    target_NC: NDArray[np.float64], patients: Sequence[str], *, folds: int, seed: int, regression: bool = False
) -> NDArray[np.int64]:
    """Return fold_N, 1 to `folds`; a patient is in one fold, and folds have much the same share of each label.

    Records of several labels count as of the rarest one. Of a regression they are stratified in five bands.

    Raises:
        ConfigError: Fewer patients than folds.
    """
    names, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < folds or folds < 3:
        raise ConfigError(
            f"{len(names)} patients in {folds} folds: three folds or more are needed, and a patient for each"
        )
    stratum_N = _bands(target_NC[:, 0]) if regression else _rarest(target_NC)
    # A stratum of fewer patients than folds cannot be spread over them: such strata are spread as one.
    for stratum in np.unique(stratum_N):
        if len(np.unique(patient_N[stratum_N == stratum])) < folds:
            stratum_N[stratum_N == stratum] = -1
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=derive(seed, "task folds") % 2**32)
    fold_N = np.zeros(len(patients), dtype=np.int64)
    with warnings.catch_warnings():
        # The rest that was gathered above may still be of fewer records than folds.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        if len(np.unique(stratum_N)) == 1 or np.bincount(stratum_N + 1).max() < folds:
            stratum_N = np.zeros_like(stratum_N)
        for number, (_, held) in enumerate(splitter.split(np.zeros((len(stratum_N), 1)), stratum_N, patient_N)):
            fold_N[held] = number + 1
    assert fold_N.min() >= 1
    return fold_N


def parts_of(fold_N: NDArray[np.int64], *, folds: int, rotation: int = 0) -> NDArray[np.str_]:
    """Return split_N of folds: `folds - rotation` is the test part, the one below it (or the last) validation.

    With ten folds and no rotation these are 10 and 9, as of PTB-XL.

    Raises:
        ConfigError: The rotation is not 0 to folds - 1.
    """
    if not 0 <= rotation < folds:
        raise ConfigError(f"--task.rotation {rotation}: with {folds} folds give 0 to {folds - 1}")
    test = folds - rotation
    validation = test - 1 or folds
    return np.where(fold_N == test, TEST, np.where(fold_N == validation, VALIDATION, TRAIN))


def label_share(split_N: NDArray[np.str_], patients: Sequence[str], *, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which records are kept when only a share of the training part's patients is labelled.

    Validation and test stay whole. Shares of one seed are nested: the 1 % is within the 10 %. Not stratified, as a
    small cohort is not: a rare label may be gone from it.

    Args:
        split_N: Part of each record.
        patients: Of each record.
        share: Of the patients, in (0, 1].
        seed: Another one draws other patients.

    Raises:
        ConfigError: The share is not in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"--task.label-share {share}: give a share above 0, up to 1")
    names = np.asarray(patients)
    # Sorted, so that the order of the records does not matter.
    train = np.unique(names[split_N == TRAIN])
    order = generator(seed, "label share").permutation(len(train))
    kept = train[order[: math.ceil(share * len(train) - 1e-9)]]
    chosen: NDArray[np.bool_] = (split_N != TRAIN) | np.isin(names, kept)
    return chosen


def check_apart(split_N: NDArray[np.str_], patients: Sequence[str], where: str) -> None:
    """Refuse parts that share a patient.

    Raises:
        ConfigError: With the first such patient.
    """
    seen: dict[str, str] = {}
    for patient, split in zip(patients, split_N.tolist(), strict=True):
        if seen.setdefault(patient, split) != split:
            raise ConfigError(
                f"{where}: {patient} is in {seen[patient]} and in {split}; give all records of a patient one part"
            )


def _rarest(target_NC: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rarest label of each record, C for a record without any."""
    has = target_NC == 1
    order = np.argsort(has.sum(axis=0), kind="stable")
    ranked = has[:, order]
    rarest: NDArray[np.int64] = np.where(ranked.any(axis=1), order[ranked.argmax(axis=1)], target_NC.shape[1])
    return rarest


def _bands(values_N: NDArray[np.float64]) -> NDArray[np.int64]:
    edges = np.quantile(values_N, np.arange(1, AGE_BANDS) / AGE_BANDS)
    return np.searchsorted(edges, values_N).astype(np.int64)
