"""Linear probe: what a logistic regression reads from frozen features, against untrained features.

Patients are split into folds (stratified by the label, never a patient on two sides); the strength of the
regularisation is chosen inside the training part, again by patient; the out-of-fold probabilities of all
folds are pooled into one AUROC. The same is done with encoders of the same settings and random weights:
an ECG's amplitude and rate survive a random projection, so 0.5 is not what a trained encoder must beat.
Intervals resample patients (see `bootstrap`); the same draws serve both, so the difference is paired.

Shapes: N records, D features, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ecgfm import config
from ecgfm.errors import ConfigError, SignalError
from ecgfm.eval.bootstrap import DRAWS, Interval, auroc, interval, patient_weights, weighted_auroc
from ecgfm.eval.labels import Target
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.leads import LEADS
from ecgfm.rng import derive
from ecgfm.shards.reader import Shards

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C that are tried; smaller is stronger regularisation."""
INNER_FOLDS = 3
RECORDS_AT_A_TIME = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the probe found for one label."""

    label: str
    records: int
    unknown: int
    """Records left out, because they say nothing in the label's scheme."""
    positive: int
    patients: int
    pretrained: Interval
    """AUROC on the pretrained encoder's features."""
    untrained: Interval
    """Mean AUROC over the encoders with random weights."""
    difference: Interval
    """Pretrained less untrained, paired."""


def untrained(encoder: ECGEncoder, seed: int) -> ECGEncoder:
    """Return an encoder of the same settings and contract with random weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "untrained weights"))
        fresh = ECGEncoder(encoder=config.to_dict(encoder.encoder.config), signal=config.to_dict(encoder.signal))
    return fresh.to(next(encoder.parameters()).device).eval()


def embed_shards(
    encoder: ECGEncoder,
    shards: Shards,
    progress: Progress = lambda done, total: None,
    records: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return features_ND of all records, or of some.

    Raises:
        SignalError: A record is not what the encoder takes; the message names it.
    """
    parts = []
    index_N = np.arange(len(shards)) if records is None else records
    progress(0, len(index_N))
    for start in range(0, len(index_N), RECORDS_AT_A_TIME):
        samples = [shards.sample(index) for index in index_N[start : start + RECORDS_AT_A_TIME].tolist()]
        for rate_hz in sorted({sample.rate_hz for sample in samples}):
            places = [place for place, sample in enumerate(samples) if sample.rate_hz == rate_hz]
            signals = [samples[place].signal_LT for place in places]
            try:
                features = encoder.embed(signals, rate_hz=rate_hz, leads=LEADS, unit="mV")
            except SignalError as error:
                names = f"{samples[places[0]].record} to {samples[places[-1]].record}"
                raise SignalError(f"among the {len(places)} records {names}: {error}") from error
            parts.append((start + np.asarray(places), features.cpu().numpy()))
        progress(start + len(samples), len(index_N))
    out = np.zeros((len(index_N), parts[0][1].shape[1]), dtype=np.float32)
    for rows, part in parts:
        out[rows] = part
    return out


def patient_folds(
    positive_N: NDArray[np.bool_], patients: Sequence[str], folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return (train, test) indices of each fold; a patient is in one test part only.

    Raises:
        ConfigError: A part lacks one of the classes.
    """
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=derive(seed, "folds") % 2**32)
    pairs = list(splitter.split(np.zeros(len(positive_N)), positive_N, np.asarray(patients)))
    for number, pair in enumerate(pairs):
        if any(len(np.unique(positive_N[part])) < 2 for part in pair):
            raise ConfigError(
                f"fold {number + 1} of {folds} has only one class on one side: the label is in too few patients; "
                "give fewer --folds or another label"
            )
    return pairs


def out_of_fold_scores(
    features_ND: NDArray[np.float32], positive_N: NDArray[np.bool_], patients: Sequence[str], folds: int, seed: int
) -> NDArray[np.float64]:
    """Return scores_N, the probability of the label from a model that never saw the record's patient."""
    scores = np.full(len(positive_N), np.nan)
    names = np.asarray(patients)
    for number, (train, test) in enumerate(patient_folds(positive_N, patients, folds, seed)):
        strength = _choose(features_ND[train], positive_N[train], names[train].tolist(), derive(seed, "inner", number))
        model = _model(strength).fit(features_ND[train], positive_N[train])
        scores[test] = model.predict_proba(features_ND[test])[:, 1]
    assert not np.isnan(scores).any()
    return scores


def measure(
    features_ND: NDArray[np.float32], target: Target, *, folds: int, seed: int, draws: int = DRAWS
) -> tuple[float, NDArray[np.float64]]:
    """Return the AUROC of one label and auroc_R, that of each draw of the bootstrap.

    Folds and draws follow from the seed and the patients alone: figures of two encoders are paired.

    Args:
        features_ND: Of all records.
        target: The label's records and answers.
        folds: Folds of patients.
        seed: Of folds and bootstrap.
        draws: Of the bootstrap; NaN where one has no positive or no negative record.
    """
    chosen = features_ND[target.index_N]
    scores = out_of_fold_scores(chosen, target.positive_N, target.patients, folds, seed)
    weights = patient_weights(target.patients, draws, seed)
    return auroc(target.positive_N, scores), weighted_auroc(target.positive_N, scores, weights)


def probe(
    pretrained_ND: NDArray[np.float32],
    untrained_ND: Sequence[NDArray[np.float32]],
    target: Target,
    *,
    folds: int,
    seed: int,
    draws: int = DRAWS,
) -> Result:
    """Return AUROCs and intervals of one label.

    Args:
        pretrained_ND: Features of all records.
        untrained_ND: The same for one or more encoders with random weights.
        target: The label's records and answers.
        folds: Folds of patients.
        seed: Of folds and bootstrap.
        draws: Of the bootstrap.
    """
    value, draws_R = measure(pretrained_ND, target, folds=folds, seed=seed, draws=draws)
    others = [measure(features, target, folds=folds, seed=seed, draws=draws) for features in untrained_ND]
    other = float(np.mean([one for one, _ in others]))
    other_R = np.mean([many for _, many in others], axis=0)
    return Result(
        label=target.label,
        records=len(target.index_N),
        unknown=target.unknown,
        positive=int(target.positive_N.sum()),
        patients=len(set(target.patients)),
        pretrained=interval(value, draws_R),
        untrained=interval(other, other_R),
        difference=interval(value - other, draws_R - other_R),
    )


def _model(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, solver="newton-cholesky", max_iter=200))


def _choose(features: NDArray[np.float32], positive: NDArray[np.bool_], patients: Sequence[str], seed: int) -> float:
    """Return the C with the best pooled AUROC inside the training part."""
    pairs = patient_folds(positive, patients, INNER_FOLDS, seed)
    best = (-1.0, STRENGTHS[0])
    for strength in STRENGTHS:
        scores = np.zeros(len(positive))
        for train, test in pairs:
            scores[test] = _model(strength).fit(features[train], positive[train]).predict_proba(features[test])[:, 1]
        best = max(best, (auroc(positive, scores), -strength), key=lambda pair: pair[0])
    return abs(best[1])
