"""What a network says of records: logits, features and figures, and each record once where its encoder is frozen.

Shapes: B windows, M records, L leads, T samples, N tokens, D width, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm.errors import ConfigError, TrainingError
from ecgfm.eval.finetune_bench import Bench
from ecgfm.eval.finetune_config import Finetune
from ecgfm.eval.finetune_data import Crops, crops, windows
from ecgfm.eval.finetune_model import Network
from ecgfm.eval.metrics import figures
from ecgfm.hub.calibration import sigmoid, softmax
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.losses import loss_sum

NEEDS_TOKENS = ("attentive", "concat")
"""Heads that read more of an encoder's output than its features."""
FEATURES = 1024
"""Crops whose features tell a head what to expect, where not all are known."""


class Worker:
    """What a network gives for records, once where its encoder is frozen.

    Args:
        bench: The records.
        settings: Windows, and memory.
        network: In any mode; nothing here has a gradient.
        frozen: Its encoder does not change while this lives.
    """

    def __init__(self, bench: Bench, settings: Finetune, network: Network, *, frozen: bool) -> None:
        self._bench, self._settings, self._network, self._frozen = bench, settings, network, frozen
        self._tokens = settings.head in NEEDS_TOKENS
        self._room = settings.memory_gb * 1e9
        self._windows: dict[bytes, list[tuple[NDArray[np.int64], Tensor, Tensor]]] = {}
        self._place: dict[int, int] = {}
        self._training: tuple[Tensor, Tensor] | None = None

    @property
    def holds_training(self) -> bool:
        """Whether `encoded` knows all training records."""
        return self._training is not None

    def encode_training(self, training: Crops, steps: int) -> None:
        """Encode the training records, where each is the same in all epochs and they are seen more than once."""
        place_N = training.place_N
        seen = steps * self._settings.batch_size
        size = len(place_N) * self._bytes_of_a_window(training.crop)
        if not self._frozen or not training.fixed or seen <= len(place_N) or size > self._room:
            return
        self._room -= size
        tokens, features = [], []
        for start in range(0, len(place_N), self._settings.batch_size):
            some = place_N[start : start + self._settings.batch_size]
            pair = self._encode(crops(self._bench.signals, some, np.zeros(len(some), dtype=np.int64), training.crop))
            tokens.append(pair[0])
            features.append(pair[1])
        self._place = {place: row for row, place in enumerate(place_N.tolist())}
        self._training = torch.cat(tokens), torch.cat(features)

    def training_features(self, training: Crops) -> Tensor:
        """Return features_MD of the training records, or of the first thousand or so crops of them."""
        if self._training is not None:
            return self._training[1]
        found = []
        for step in range(-(-min(len(training), FEATURES) // self._settings.batch_size)):
            place_B, start_B = training.step(step)
            found.append(self._encode(crops(self._bench.signals, place_B, start_B, training.crop))[1])
        return torch.cat(found)

    def encoded(self, place_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return tokens_BND (N may be 0) and features_BD of training records."""
        assert self._training is not None
        rows = torch.tensor([self._place[place] for place in place_B.tolist()])
        device = self._bench.accelerator.device
        return self._training[0][rows].to(device), self._training[1][rows].to(device)

    @torch.no_grad()
    def predict(self, place_M: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return logit_MC and feature_MD of records; their windows' are put together. All processes must call it."""
        accelerator = self._bench.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        self._network.eval()
        width = self._bench.encoder.encoder.config.width
        logit_MC = np.zeros((len(place_M), len(self._bench.examples.labels)))
        feature_MD, count_M = np.zeros((len(place_M), width)), np.zeros(len(place_M))
        if self._settings.aggregate == "max":
            logit_MC[rank::world] = -np.inf
        for row_B, tokens_BND, features_BD in self._encoded_windows(place_M[rank::world]):
            with accelerator.autocast():
                logits_BC = self._network(None, (tokens_BND, features_BD))
            mine_B = row_B * world + rank
            put = np.add if self._settings.aggregate == "mean" else np.maximum
            put.at(logit_MC, mine_B, logits_BC.double().cpu().numpy())
            np.add.at(feature_MD, mine_B, features_BD.double().cpu().numpy())
            np.add.at(count_M, mine_B, 1.0)
        count_M[count_M == 0] = 1.0
        if self._settings.aggregate == "mean":
            logit_MC /= count_M[:, None]
        # Each process has the rows of its own and zeros elsewhere. Float32, which every device can add.
        logit_MC, feature_MD = (
            self._bench.sum_over_processes(torch.from_numpy(values.astype(np.float32)).to(accelerator.device))
            .cpu()
            .double()
            .numpy()
            for values in (logit_MC, feature_MD / count_M[:, None])
        )
        return logit_MC, feature_MD.astype(np.float32)

    def _encoded_windows(self, place_M: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """Yield row_B, tokens_BND and features_BD of all windows of records."""
        device, key = self._bench.accelerator.device, place_M.tobytes()
        if key in self._windows:
            for row_B, tokens_BND, features_BD in self._windows[key]:
                yield row_B, tokens_BND.to(device), features_BD.to(device)
            return
        held: list[tuple[NDArray[np.int64], Tensor, Tensor]] | None = [] if self._frozen else None
        room = self._room
        for row_B, signal_BLT in windows(
            self._bench.signals,
            place_M,
            self._bench.encoder.preprocessor,
            length=self._bench.crop_samples(self._settings),
            stride=self._bench.stride_samples(self._settings),
            batch_size=self._settings.batch_size,
        ):
            tokens_BND, features_BD = self._encode(signal_BLT)
            if held is not None:
                room -= 4 * (tokens_BND.numel() + features_BD.numel())
                held = [*held, (row_B, tokens_BND, features_BD)] if room >= 0 else None
            yield row_B, tokens_BND.to(device), features_BD.to(device)
        if held is not None:
            self._windows[key], self._room = held, room

    @torch.no_grad()
    def _encode(self, signal_BLT: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Return tokens_BND, none where no head asks for them, and features_BD, on the CPU where they are kept."""
        self._network.eval()
        with self._bench.accelerator.autocast():
            tokens_BND, features_BD = self._network.encode(
                torch.from_numpy(signal_BLT).to(self._bench.accelerator.device)
            )
        tokens_BND = tokens_BND.float() if self._tokens else tokens_BND.new_zeros(len(tokens_BND), 0, 0).float()
        if self._frozen:
            return tokens_BND.cpu(), features_BD.float().cpu()
        return tokens_BND, features_BD.float()

    def _bytes_of_a_window(self, samples: int) -> int:
        settings = self._bench.encoder.encoder.config
        return 4 * settings.width * (1 + (settings.tokens(samples) if self._tokens else 0))


def validation_figures(
    classifier: ECGClassifier,
    logit_MC: NDArray[np.float64],
    target_MC: NDArray[np.float64],
    labels: tuple[str, ...],
    select: str,
) -> dict[str, float]:
    """Return the figures of a part by name, with `loss`.

    Raises:
        ConfigError: The one that selects has no value.
        TrainingError: The logits are not finite.
    """
    if not np.isfinite(logit_MC).all():
        raise TrainingError("the validation part's logits are not finite: the run has diverged; give a lower lr")
    std = classifier.settings.target_std
    scale_C = None if std is None else torch.tensor(std, dtype=torch.float64)
    total, known = loss_sum(classifier.kind, torch.from_numpy(logit_MC), torch.from_numpy(target_MC), scale_C)
    value_MC = logit_MC
    if classifier.kind != "regression":
        value_MC = sigmoid(logit_MC) if classifier.kind == "multilabel" else softmax(logit_MC)
    once = np.ones((1, len(target_MC)), dtype=np.int64)
    whole = figures(classifier.kind, target_MC, value_MC, once, labels).whole
    found = {"loss": float(total / known.clamp(min=1))}
    found |= {name: float(draws[0]) for name, draws in whole.items() if not math.isnan(draws[0])}
    if select not in found:
        raise ConfigError(
            f"--select {select} has no value in the validation part of {len(target_MC)} records: a {classifier.kind} "
            f"task has {', '.join(found)}; give one of these"
        )
    return found
