"""The network that is fine-tuned: a classifier with what a study does to its input, and its optimizer.

Shapes: B windows, L leads, T samples, N tokens, D width, C labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.finetune_config import Input, Phase
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.encoder import ECGEncoder


class Network(nn.Module):
    """A classifier whose input may be changed between normalisation and encoder.

    Args:
        classifier: It is trained itself, no copy.
        study: What is done to the input.
    """

    def __init__(self, classifier: ECGClassifier, study: Input) -> None:
        super().__init__()
        self.classifier = classifier
        self._spectrum = study.spectrum
        kept = study.kept()
        self._absent = [place for place, lead in enumerate(classifier.encoder.signal.leads) if lead not in kept]

    def encode(self, signal_BLT: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens_BND and features_BD of millivolt."""
        encoder = self.classifier.encoder
        both: tuple[Tensor, Tensor] = encoder.encoder.encode(self.changed(encoder.normalise(signal_BLT)))
        return both

    def changed(self, signal_BLT: Tensor) -> Tensor:
        """Return what the encoder is given in place of a normalised signal."""
        if self._absent:
            signal_BLT = signal_BLT.index_fill(1, torch.tensor(self._absent, device=signal_BLT.device), 0.0)
        if self._spectrum == "none":
            return signal_BLT
        spectrum_BLT = torch.fft.fft(signal_BLT.float(), dim=2, norm="ortho")
        if self._spectrum == "absolute":
            part_BLT: Tensor = spectrum_BLT.abs()
        else:
            part_BLT = spectrum_BLT.real if self._spectrum == "real" else spectrum_BLT.imag
        changed_BLT: Tensor = part_BLT.to(signal_BLT.dtype)
        return changed_BLT

    def forward(self, signal_BLT: Tensor | None, encoded: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return logits_BC of millivolt, or of what `encode` gave.

        A frozen encoder leaves no trace for the gradient.
        """
        if encoded is None:
            assert signal_BLT is not None
            frozen = not any(weight.requires_grad for weight in self.classifier.encoder.parameters())
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                encoded = self.encode(signal_BLT)
        return self.classifier.logits(*encoded)


def with_dropout(classifier: ECGClassifier, dropout: float) -> ECGClassifier:
    """Return the classifier with a head of another dropout and the same weights; the encoder is the same."""
    if classifier.settings.dropout == dropout:
        return classifier
    changed = ECGClassifier(classifier.encoder, replace(classifier.settings, dropout=dropout))
    changed.head.load_state_dict(classifier.head.state_dict())
    return changed


def first_groups(phase: Phase, classifier: ECGClassifier, groups: int | None) -> float:
    """Return the factor from one group's rate to that of the group before it, which spans `first_layer_share`."""
    number = classifier.num_groups(groups)
    return float(phase.first_layer_share ** (1 / max(number - 1, 1)))


def build_optimizer(classifier: ECGClassifier, phase: Phase, groups: int | None) -> torch.optim.AdamW:
    """Return AdamW over the weights that are trained; a group's rate is `share` of the head's.

    Raises:
        ConfigError: Nothing is trained.
    """
    made: list[dict[str, Any]] = classifier.parameter_groups(
        1.0, first_groups(phase, classifier, groups), weight_decay=phase.weight_decay, most=groups
    )
    chosen = []
    for group in made:
        weights = [weight for weight in group["params"] if weight.requires_grad]
        if weights:
            chosen.append({**group, "params": weights, "share": group["lr"]})
    if not chosen:
        raise ConfigError("no weight is trained in this phase")
    return torch.optim.AdamW(chosen, lr=phase.lr, betas=(0.9, phase.second_beta), weight_decay=phase.weight_decay)


def native_rate(encoder: ECGEncoder, rate_hz: float) -> ECGEncoder:
    """Return an encoder of the same settings whose contract demands another rate and windows of as many seconds.

    Its weights are random; who calls it draws them.
    """
    contract = encoder.signal
    samples = round(contract.window_samples * rate_hz / contract.rate_hz)
    patch = encoder.encoder.config.patch_samples
    if samples < patch:
        raise ConfigError(f"--input.rate-hz {rate_hz:g}: a window has {samples} samples, and a patch {patch}")
    if contract.highpass_hz is not None and contract.highpass_hz >= rate_hz / 2:
        raise ConfigError(f"--input.rate-hz {rate_hz:g} is too low for the contract's high-pass filter")
    signal = replace(contract, rate_hz=rate_hz, window_samples=samples // patch * patch)
    return ECGEncoder(encoder=config.to_dict(encoder.encoder.config), signal=config.to_dict(signal))
