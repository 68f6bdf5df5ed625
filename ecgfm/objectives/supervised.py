"""Supervised pretraining on labels: several at once, each of them yes or no.

Verma, Dige and Gill 2021 train on PTB-XL and go on with Georgia, over 18 labels that both have (see
ecgfm/labels/shared.py).

Paper says: XResNet, ResNet and Inception; 18 shared labels. Code says: a head on the maximum and the mean of the
feature steps, with one hidden layer of 128, batch norm and dropout of .5 before each layer (half of it before the
first); binary cross-entropy. Ours: the same. The loss is the mean over the labels that are known of a window: several
databases may be trained on together, none of which knows all labels. Dropout is drawn by step and row, as all else is.

Shapes: B windows, L leads, T samples, N feature steps, D width, F features of the head, H hidden, C labels, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from ecgfm.data.batch import Batch, Draws
from ecgfm.data.labels import label_names
from ecgfm.data.panel import Panel
from ecgfm.encoders.base import Encoder, check_window
from ecgfm.errors import ConfigError
from ecgfm.nn.collapse import dimension_std, effective_rank
from ecgfm.nn.gather import num_ranks
from ecgfm.nn.norms import Norm, channel_norm
from ecgfm.objectives._checks import check_counts, check_pool_is_mean
from ecgfm.objectives.base import Losses, Objective, Progress


class Supervised(Objective):
    """Tell which labels a window has."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of supervised pretraining."""

        labels: tuple[str, ...] = ("shared18",)
        """What is learnt: labels as scheme:code, and whole sets: shared18, challenge, chapman-rhythm, sex, scp and
        scp-diagnostic, -subdiagnostic, -superdiagnostic, -form, -rhythm. One that no record of a database has is
        unknown there, and asked of no record of it."""
        hidden: int | None = 128
        """Features between the head's two layers; None for a head of one layer."""
        dropout: float = 0.5
        """Share of the head's features that are dropped before its last layer; half as many before a first one."""
        norm: Norm = "batch"
        """Of the head's features: over the rows of all ranks, of each rank (rank-batch), or of each record (group)."""

        def __post_init__(self) -> None:
            label_names(self.labels)
            if not 0.0 <= self.dropout < 1.0:
                raise ConfigError(f"--objective.dropout must be 0 to below 1, got {self.dropout}")
            check_counts(self, "hidden")

    config: Config

    @classmethod
    def labels(cls, config: Objective.Config) -> tuple[str, ...]:
        """Return the labels, as `scheme:code`."""
        assert isinstance(config, Supervised.Config)
        return label_names(config.labels)

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse windows that the encoder's steps do not fill, and a pool, which the head would not use."""
        check_window(encoder, window_samples)
        check_pool_is_mean("supervised", encoder)

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        features = 2 * encoder.config.width
        layers = [(features, config.dropout)]
        if config.hidden is not None:
            layers = [(features, config.dropout / 2), (config.hidden, config.dropout)]
        outs = [width for width, _ in layers[1:]] + [len(self.labels(config))]
        self.shares = [share for _, share in layers]
        self.norms = nn.ModuleList(channel_norm(config.norm, width) for width, _ in layers)
        self.layers = nn.ModuleList(nn.Linear(width, out) for (width, _), out in zip(layers, outs, strict=True))

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Draw what is dropped."""
        if not self.config.dropout:
            return batch
        return replace(batch, uniform_BR=draws.many("dropout", sum(layer.in_features for layer in self._linear())))

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window and its labels."""
        assert batch.labels_BC is not None
        names, notes = self.labels(self.config), []
        for label_C in batch.labels_BC.tolist():
            has = [name for name, value in zip(names, label_C, strict=True) if value == 1.0]
            known = sum(value == value for value in label_C)
            notes.append(f"labels {', '.join(has) or 'none'}; {known} of {len(names)} known")
        return (Panel(title="window", signal_BLT=batch.signal_BLT, notes=tuple(notes)),)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Binary cross-entropy, as a mean over the known labels of all ranks' windows.

        Args:
            batch: Normalised `signal_BLT`; `labels_BC`, NaN where unknown; `uniform_BR` for dropout.
            at: Where the run stands.

        Returns:
            `loss`, a scalar, 0 where nothing is known; `known`, the share of the labels that are. At measured steps
            also `feature_std` and `feature_rank` of the pooled features; see nn/collapse.py.
        """
        assert batch.labels_BC is not None, "the loader gives labels to an objective that names some"
        tokens_BND = self.encoder(batch.signal_BLT)
        logits_BC = self.head(tokens_BND, batch.uniform_BR if self.training else None).float()
        known_BC = batch.labels_BC.isfinite()
        wanted_BC = torch.where(known_BC, batch.labels_BC, 0.0)
        each_BC = functional.binary_cross_entropy_with_logits(logits_BC, wanted_BC, reduction="none")
        losses = {
            "loss": torch.where(known_BC, each_BC, 0.0).sum() / self._share_of_known(known_BC),
            "known": known_BC.float().mean(),
        }
        if at.measure:
            features_BD = self.encoder.pool(tokens_BND.detach())
            losses |= {
                "feature_std": dimension_std(features_BD).mean(),
                "feature_rank": effective_rank(features_BD),
            }
        return losses

    def head(self, tokens_BND: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """Return logits_BC.

        Args:
            tokens_BND: The encoder's.
            uniform_BR: What decides whether a feature is dropped; None drops none.
        """
        tokens_BND = tokens_BND.float()
        hidden_BF = torch.cat([tokens_BND.amax(dim=1), tokens_BND.mean(dim=1)], dim=1)
        for number, (norm, layer, share) in enumerate(zip(self.norms, self._linear(), self.shares, strict=True)):
            # The weights' type: those of 16 bits take no other.
            hidden_BF = norm((hidden_BF.relu() if number else hidden_BF).to(layer.weight.dtype))
            if uniform_BR is not None and share:
                uniform_BF, uniform_BR = uniform_BR.tensor_split([layer.in_features], dim=1)
                hidden_BF = hidden_BF * (uniform_BF >= share) / (1.0 - share)
            hidden_BF = layer(hidden_BF.to(layer.weight.dtype))
        return hidden_BF

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def _share_of_known(self, known_BC: Tensor) -> Tensor:
        """Return this rank's share of the known labels of all ranks. When they train, all ranks must call it."""
        count = known_BC.sum().float()
        if self.training and count.device.type != "meta" and num_ranks() > 1:
            # The engine takes the mean over ranks, and so gets the mean over all labels, however unevenly the ranks
            # know them.
            dist.all_reduce(count)
            count = count / num_ranks()
        return count.clamp(min=torch.finfo(torch.float32).tiny)

    def published(self) -> Encoder:
        """Return the encoder, without its head."""
        return self.encoder
