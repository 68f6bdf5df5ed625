"""What the nearest training records say: a probe without any training.

Cosine similarity of features that are centred on the training part's mean, and the k nearest vote with
exp(similarity / temperature), as in Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.4, and in DINO, Caron
et al. 2021, https://arxiv.org/abs/2104.14294, which do not centre: the mean ECG is most of what untrained features and
many trained ones have in common, and without it the similarities of all pairs are near 1.

Shapes: N training records, M others, D features, C labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from ecgfm.errors import ConfigError


class Neighbours:
    """The training part's features and targets.

    Args:
        features_ND: Of the training part.
        target_NC: 1, 0, or NaN where it is unknown; of a regression numbers.
        most: The largest k that will be asked for; more than N are N.

    Raises:
        ConfigError: The features are not finite.
    """

    def __init__(self, features_ND: NDArray[np.floating], target_NC: NDArray[np.float64], *, most: int) -> None:
        if not np.isfinite(features_ND).all():
            raise ConfigError("the encoder's features hold values that are not finite: it has diverged")
        self._target_NC = target_NC
        self._mean_D = features_ND.mean(axis=0, dtype=np.float64)
        self._index = NearestNeighbors(n_neighbors=min(most, len(features_ND)), metric="cosine", algorithm="brute")
        self._index.fit(features_ND - self._mean_D)

    def ask(self, features_MD: NDArray[np.floating], k: int, temperature: float) -> NDArray[np.float64]:
        """Return answer_MC: the mean of the neighbours' targets by their votes.

        A label that none of the k knows gets what the training part has on the mean.
        """
        distance_MK, place_MK = self._index.kneighbors(features_MD - self._mean_D)
        similarity_MK = 1 - distance_MK[:, :k]
        # Less the largest: the same shares, and no overflow.
        vote_MK = np.exp((similarity_MK - similarity_MK.max(axis=1, keepdims=True)) / temperature)
        target_MKC = self._target_NC[place_MK[:, :k]]
        known_MKC = ~np.isnan(target_MKC)
        vote_MKC = vote_MK[:, :, None] * known_MKC
        total_MC = vote_MKC.sum(axis=1)
        mean_C = np.nanmean(self._target_NC, axis=0)
        answer_MC: NDArray[np.float64] = np.broadcast_to(mean_C, total_MC.shape).copy()
        votes_MC = (vote_MKC * np.nan_to_num(target_MKC)).sum(axis=1)
        np.divide(votes_MC, total_MC, out=answer_MC, where=total_MC > 0)
        return answer_MC


def log_odds(probability_NC: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Return logits whose sigmoid, or softmax, is near the probabilities; none is beyond those of 1 in 10,000."""
    held = probability_NC.clip(1e-4, 1 - 1e-4)
    odds: NDArray[np.float64] = np.log(held) - (0.0 if kind == "multiclass" else np.log1p(-held))
    return odds
