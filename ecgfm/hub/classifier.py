"""An encoder with a head and labels: from recordings as they come to probabilities, and what fine-tuning needs.

    classifier = ECGClassifier.from_pretrained("someone/ecg-jepa-vit-s", labels=["AF", "LBBB"], head="attentive")
    optimizer = torch.optim.AdamW(classifier.parameter_groups(lr=1e-3, layer_decay=0.75))
    loss = classifier.loss(windows_BLT, target_BC)
    ...
    classifier.save_pretrained("out/classifier")
    classifier.predict_proba(signal, rate_hz=257, leads=["II", "I", ...], unit="uV")

Saved, it is `config.json` (settings of encoder and classifier, signal contract, calibration as plain numbers),
`model.safetensors`, `reference.safetensors` and `README.md`.

Shapes: B windows, R records, L leads, T samples, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, Unpack, get_args

import torch
from torch import Tensor, nn

from ecgfm import __version__, config
from ecgfm.errors import ConfigError, ContractError
from ecgfm.hub import reference
from ecgfm.hub.calibration import Calibration
from ecgfm.hub.card import classifier_card
from ecgfm.hub.encoder import CLASSIFIER, ENTRIES, FORMAT, ECGEncoder, load_weights_, to_device
from ecgfm.hub.fetch import (
    CONFIG,
    README,
    WEIGHTS,
    Fetched,
    FromHub,
    check_options,
    fetch,
    read_entries,
)
from ecgfm.hub.heads import Head, HeadKind, build_head
from ecgfm.hub.layers import layer_groups
from ecgfm.hub.losses import Kind, loss_sum
from ecgfm.hub.model import HubModel
from ecgfm.hub.recordings import Signal
from ecgfm.hub.reference import REFERENCE, evaluating
from ecgfm.rng import derive

Unfreeze = Literal["none", "head", "gradual", "all"]
THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """What `config.json` says of a classifier besides its encoder and signal contract."""

    labels: tuple[str, ...]
    """Names of the logits; of a regression, of the values."""
    kind: Kind = "multilabel"
    """Any number of labels (sigmoid), one of them (softmax), or values as they are."""
    head: HeadKind = "linear"
    """What stands on the encoder; see hub/heads.py."""
    hidden: int | None = None
    """Width of the hidden layer of mlp2 (256 by default) and concat (128)."""
    dropout: float = 0.0
    """Share of the features that training leaves out before the last layer."""
    aggregate: Literal["mean", "max"] = "mean"
    """What of the logits of a record's windows is the record's."""
    window_s: float | None = None
    """Seconds of a window at prediction; the signal contract's by default."""
    stride_s: float | None = None
    """Seconds from one window to the next; by default as few windows as cover the record, evenly spaced."""
    thresholds: tuple[float, ...] | None = None
    """Probability of each label from which `predict` names it; 0.5 by default."""
    target_mean: tuple[float, ...] | None = None
    """Of a regression: logits are target_mean + target_std * the head's output, in the target's own unit."""
    target_std: tuple[float, ...] | None = None
    """Likewise."""
    calibration: dict[str, Any] | None = None
    """From logits to probabilities, as numbers."""

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise ConfigError(f"labels must be different names, at least one, got {list(self.labels)}")
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind {self.kind!r} is none of {', '.join(get_args(Kind))}")
        if self.kind == "multiclass" and len(self.labels) < 2:
            raise ConfigError(f"kind multiclass needs at least two labels, got {list(self.labels)}; use multilabel")
        if self.aggregate not in ("mean", "max"):
            raise ConfigError(f"aggregate {self.aggregate!r} is neither mean nor max")
        for name in ("window_s", "stride_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0 seconds, got {value}")
        for name in ("thresholds", "target_mean", "target_std"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.labels):
                raise ConfigError(f"{name} has {len(value)} numbers for {len(self.labels)} labels")
        if (self.target_mean is None) != (self.target_std is None) or (self.target_std and min(self.target_std) <= 0):
            raise ConfigError(
                f"target_mean and target_std go together, and the latter is above 0: {self.target_mean} "
                f"{self.target_std}"
            )


class ECGClassifier(HubModel):
    """An encoder and a head.

    Args:
        encoder: The encoder itself, no copy: training changes it.
        settings: Labels, head and how a record's windows are put together.
        seed: Of the head's first weights.

    Raises:
        ConfigError: Settings that cannot work.
    """

    encoder: ECGEncoder
    head: Head
    settings: ClassifierSettings
    """As they were when it was built; what may change later are the attributes below."""
    calibration: Calibration | None
    """From logits to probabilities; None is sigmoid or softmax."""

    def __init__(self, encoder: ECGEncoder, settings: ClassifierSettings, *, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            self.head = build_head(
                settings.head,
                encoder.encoder.config.width,
                len(settings.labels),
                hidden=settings.hidden,
                heads=getattr(encoder.encoder.config, "num_heads", None),
                dropout=settings.dropout,
            )
        first = next(encoder.parameters())
        self.head.to(first.device, first.dtype)
        self.calibration = Calibration.from_dict(settings.calibration) if settings.calibration else None
        self.aggregate: Literal["mean", "max"] = settings.aggregate
        self.window_s = settings.window_s
        self.stride_s = settings.stride_s
        self.thresholds = settings.thresholds

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the logits."""
        return self.settings.labels

    @property
    def kind(self) -> Kind:
        """What the logits mean."""
        return self.settings.kind

    @classmethod
    def from_pretrained(  # type: ignore[override]  # fewer options than the mixin, and our own
        cls,
        pretrained: str | Path | ECGEncoder,
        *,
        labels: Sequence[str] | None = None,
        kind: Kind | None = None,
        head: HeadKind | None = None,
        unfreeze: Unfreeze = "head",
        hidden: int | None = None,
        dropout: float | None = None,
        aggregate: Literal["mean", "max"] | None = None,
        window_s: float | None = None,
        stride_s: float | None = None,
        seed: int = 0,
        map_location: str | torch.device = "cpu",
        check: bool = False,
        **how: Unpack[FromHub],
    ) -> Self:
        """Return a new head on an encoder, or a classifier as it was saved; in evaluation mode.

        Args:
            pretrained: An encoder, or a folder or `owner/name` on the Hub that holds an encoder or a classifier.
            labels: Of a new head. A saved classifier knows its own, and of this and the next seven what is given must
                be what it says.
            kind: multilabel (default), multiclass or regression.
            head: linear (default), attentive, mlp2 or concat.
            unfreeze: What training changes: none; head; gradual (the head at first, more by `unfreeze_`); all.
            hidden: Width of the hidden layer of mlp2 and concat.
            dropout: Before the last layer; 0 by default.
            aggregate: mean (default) or max of the logits of a record's windows.
            window_s: Seconds of a window at prediction; the signal contract's by default.
            stride_s: Seconds from one window to the next.
            seed: Of a new head's weights.
            map_location: Device of the weights; an encoder stays where it is.
            check: Run `self_test` before the model is given out.
            how: revision, cache_dir, force_download, local_files_only, token, as for the encoder.

        Raises:
            ConfigError: There are no labels for a new head, or settings that a saved classifier does not have.
            ContractError: A file is missing, damaged, or asks for what this version does not know.
            TypeError: An option is unknown.
        """
        check_options(how)
        given: dict[str, Any] = {
            "labels": None if labels is None else _names(labels),
            "kind": kind,
            "head": head,
            "hidden": hidden,
            "dropout": dropout,
            "aggregate": aggregate,
            "window_s": window_s,
            "stride_s": stride_s,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if unfreeze not in get_args(Unfreeze):
            raise ConfigError(f"unfreeze {unfreeze!r} is none of {', '.join(get_args(Unfreeze))}")
        if not isinstance(pretrained, ECGEncoder):
            saved = fetch(pretrained, (CONFIG, WEIGHTS), (README, REFERENCE), **how)
            entries = read_entries(saved.paths[CONFIG], ENTRIES, (CLASSIFIER,))
            if CLASSIFIER in entries:
                model = cls._as_saved(saved, entries)
                _check_given(given, model.settings, pretrained)
                model = to_device(model, map_location).eval().unfreeze_as_(unfreeze)
                if check:
                    model.self_test()
                return model
            # What was fetched is in the cache: the encoder is the same commit's.
            how = {**how, "revision": saved.revision, "force_download": False}
            pretrained = ECGEncoder.from_pretrained(pretrained, map_location=map_location, check=check, **how)
        if "labels" not in given:
            raise ConfigError("a new head needs labels: give labels=[...], the names of what it tells")
        return cls(pretrained, ClassifierSettings(**given), seed=seed).eval().unfreeze_as_(unfreeze)

    @classmethod
    def _as_saved(cls, saved: Fetched, entries: Mapping[str, Any]) -> Self:
        with torch.random.fork_rng(devices=[]):  # the random weights that are replaced must move no generator
            encoder = ECGEncoder(**{name: entries[name] for name in ENTRIES})
            try:
                settings = config.from_dict(ClassifierSettings, entries[CLASSIFIER], CLASSIFIER)
                model = cls(encoder, settings)
            except ConfigError as error:
                raise ContractError(
                    f"ecgfm {__version__} cannot honour what {entries['ecgfm'].get('version')} wrote: {error}; upgrade"
                ) from error
        load_weights_(model, saved.paths[WEIGHTS])
        model._take_from(saved)
        return model

    def forward(self, signal_BLT: Tensor) -> Tensor:
        """Return logits_BC, float32, of windows; of a regression, values in the target's unit.

        Args:
            signal_BLT: Millivolt, as `ECGPreprocessor.windows` gives it.
        """
        return self.logits(*self.encoder.encode(signal_BLT))

    def logits(self, tokens_BND: Tensor, features_BD: Tensor) -> Tensor:
        """Return logits_BC of what the encoder gave, which a frozen one has to give only once."""
        dtype = next(self.head.parameters()).dtype
        logits_BC: Tensor = self.head(tokens_BND.to(dtype), features_BD.to(dtype)).float()
        if self.settings.target_mean is None or self.settings.target_std is None:
            return logits_BC
        mean_C, std_C = (logits_BC.new_tensor(x) for x in (self.settings.target_mean, self.settings.target_std))
        return mean_C + std_C * logits_BC

    def loss(self, signal_BLT: Tensor, target_BC: Tensor) -> Tensor:
        """Return the mean loss of windows over what is known, a scalar.

        Binary cross-entropy of a multilabel model, cross-entropy of a multiclass one, squared error of a
        regression, in units of the targets' deviation once `standardise_` has told it.

        Args:
            signal_BLT: As for `forward`.
            target_BC: 1, 0, or NaN where it is not known; of a multiclass model also (B, 1), the number of the label;
                of a regression values.

        Raises:
            ConfigError: The targets' shape is not the logits'.
        """
        logits_BC: Tensor = self(signal_BLT)
        target_BC = target_BC.to(logits_BC)
        if self.kind == "multiclass" and target_BC.shape == (len(logits_BC), 1):
            unknown_B1 = target_BC.isnan()
            number_B = target_BC.nan_to_num()[:, 0].long()
            if number_B.min() < 0 or number_B.max() >= len(self.labels):
                raise ConfigError(f"labels are numbered 0 to {len(self.labels) - 1}, got {number_B.tolist()}")
            target_BC = nn.functional.one_hot(number_B, len(self.labels)).to(logits_BC)
            target_BC = target_BC.masked_fill(unknown_B1, torch.nan)
        if target_BC.shape != logits_BC.shape:
            raise ConfigError(f"targets have shape {tuple(target_BC.shape)}, logits {tuple(logits_BC.shape)}")
        std = self.settings.target_std
        total, known = loss_sum(self.kind, logits_BC, target_BC, None if std is None else logits_BC.new_tensor(std))
        # A batch of which nothing is known has no loss, and a gradient of zero.
        return total / known.clamp(min=1)

    def standardise_features_(self, features_ND: Tensor) -> None:
        """Tell the head of a frozen encoder what its features are, such as those of the training records.

        The heads linear and mlp2 then see features of mean 0 and deviation 1, whatever the encoder; the others have a
        norm of their own.

        Args:
            features_ND: Of N records or windows, two or more.

        Raises:
            ConfigError: Another width, or fewer records.
        """
        width = self.encoder.encoder.config.width
        if features_ND.ndim != 2 or features_ND.shape[1] != width or len(features_ND) < 2:
            raise ConfigError(f"features must have shape (N, {width}), N at least 2, got {tuple(features_ND.shape)}")
        std_D, mean_D = torch.std_mean(features_ND.detach().double(), dim=0, correction=0)
        self.head.standardise_(mean_D.float(), std_D.float())

    def standardise_(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Have the head tell a regression's targets in units of their deviation from their mean, in training data.

        Raises:
            ConfigError: It is no regression, or there are not as many numbers as labels.
        """
        if self.kind != "regression":
            raise ConfigError(f"targets of kind {self.kind} have no mean and deviation")
        self.settings = replace(self.settings, target_mean=tuple(map(float, mean)), target_std=tuple(map(float, std)))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; norms of frozen layers stay in evaluation, so that their averages stay what they are."""
        super().train(mode)
        if mode:
            groups = layer_groups(self.encoder.encoder)
            for group in groups:
                for module in group.modules:
                    module.train(group.trains())
            if not any(weight.requires_grad for weight in self.head.parameters()):
                self.head.eval()
        return self

    def num_groups(self, most: int | None = None) -> int:
        """Return the groups of layers, the head being one; see `unfreeze_`."""
        return 1 + len(layer_groups(self.encoder.encoder, most))

    def unfreeze_(self, groups: int, *, most: int | None = None) -> Self:
        """Have the head and the encoder's last layers train, `groups` of them in all, and freeze the rest.

        Args:
            groups: 0 freezes all, 1 leaves the head to train, 2 adds the encoder's last block; from `num_groups` on
                everything trains.
            most: Join the encoder's layers to so many groups at the most.

        Raises:
            ConfigError: Below 0.
        """
        if groups < 0:
            raise ConfigError(f"groups to unfreeze must be 0 or more, got {groups}")
        self.head.requires_grad_(groups > 0)
        for number, group in enumerate(layer_groups(self.encoder.encoder, most), start=1):
            for weight in group.weights.values():
                weight.requires_grad_(number < groups)
        return self.train(self.training)

    def unfreeze_as_(self, how: Unfreeze) -> Self:
        """Have train what `from_pretrained(unfreeze=...)` says; gradual begins with the head."""
        return self.unfreeze_({"none": 0, "head": 1, "gradual": 1, "all": self.num_groups()}[how])

    def parameter_groups(
        self, lr: float, layer_decay: float = 1.0, *, weight_decay: float | None = None, most: int | None = None
    ) -> list[dict[str, Any]]:
        """Return groups for a torch optimizer, from the head to the first layer, frozen ones too.

        A weight without gradient is passed over by torch's optimizers, and takes part once it is unfrozen.

        Args:
            lr: Of the head.
            layer_decay: What each group's rate is of that of the group after it.
            weight_decay: Of matrices and convolutions; vectors (norms, biases) then have a group of their own with 0.
                None leaves it to the optimizer.
            most: As in `unfreeze_`.

        Returns:
            Dicts of `params`, `lr`, `name`, and `weight_decay` where one is given.
        """
        layers: list[tuple[str, list[nn.Parameter]]] = [("head", list(self.head.parameters()))]
        layers += [(group.name, list(group.weights.values())) for group in layer_groups(self.encoder.encoder, most)]
        groups: list[dict[str, Any]] = []
        for number, (name, weights) in enumerate(layers):
            rate = lr * layer_decay**number
            if weight_decay is None:
                groups.append({"params": weights, "lr": rate, "name": name})
                continue
            for suffix, decay, chosen in (
                ("", weight_decay, [weight for weight in weights if weight.ndim > 1]),
                (".vectors", 0.0, [weight for weight in weights if weight.ndim <= 1]),
            ):
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "name": name + suffix})
        return groups

    @torch.no_grad()
    def predict_logits(
        self, signal: Signal, *, rate_hz: float, leads: Sequence[str], unit: str, batch_size: int = 64
    ) -> Tensor:
        """Return logits_RC of recordings as they come: the mean, or the maximum, over their windows.

        Args:
            signal: As for `ECGEncoder.embed`, like all that follow.
            rate_hz: Its sampling rate.
            leads: Its lead names.
            unit: mV, uV or V.
            batch_size: Windows that the encoder takes at a time.

        Raises:
            LeadError: As `ECGEncoder.embed`.
            SignalError: As `ECGEncoder.embed`.
        """
        make = self.encoder.preprocessor
        length = None if self.window_s is None else make.samples(self.window_s)
        stride = None if self.stride_s is None else make.samples(self.stride_s)
        device = next(self.parameters()).device
        rows: list[int] = []
        parts: list[Tensor] = []
        waiting: dict[int, list[tuple[int, Tensor]]] = {}  # windows by length, each with its record

        def run(items: list[tuple[int, Tensor]]) -> None:
            parts.append(self(torch.stack([window for _, window in items]).to(device)))
            rows.extend(row for row, _ in items)

        with evaluating(self):
            for row, record in enumerate(make.prepared(signal, rate_hz=rate_hz, leads=leads, unit=unit)):
                for start, stop in make.places(record.shape[-1], length=length, stride=stride):
                    items = waiting.setdefault(stop - start, [])
                    items.append((row, torch.from_numpy(record[:, start:stop])))
                    if len(items) >= batch_size:
                        run(waiting.pop(stop - start))
            for items in waiting.values():
                run(items)
        row_B = torch.tensor(rows, device=device)
        in_order_BC = torch.cat(parts)[row_B.argsort(stable=True)]
        of_record = torch.split(in_order_BC, torch.bincount(row_B).tolist())
        if self.aggregate == "mean":
            return torch.stack([windows_BC.mean(dim=0) for windows_BC in of_record])
        return torch.stack([windows_BC.amax(dim=0) for windows_BC in of_record])

    def predict_proba(
        self, signal: Signal, *, rate_hz: float, leads: Sequence[str], unit: str, batch_size: int = 64
    ) -> Tensor:
        """Return probability_RC of recordings as they come, calibrated if a calibration was fitted.

        Args:
            signal: As for `predict_logits`, like all that follow.
            rate_hz: Its sampling rate.
            leads: Its lead names.
            unit: mV, uV or V.
            batch_size: Windows that the encoder takes at a time.

        Raises:
            ConfigError: It is a regression, which has values and no probabilities.
            LeadError: As `ECGEncoder.embed`.
            SignalError: As `ECGEncoder.embed`.
        """
        if self.kind == "regression":
            raise ConfigError("a regression has no probabilities; predict gives its values")
        logits_RC = self.predict_logits(signal, rate_hz=rate_hz, leads=leads, unit=unit, batch_size=batch_size)
        return self.probabilities(logits_RC)

    def probabilities(self, logits_RC: Tensor) -> Tensor:
        """Return probability_RC of logits of records: calibrated, or sigmoid or softmax."""
        if self.calibration is not None:
            calibrated = self.calibration.apply(logits_RC.double().cpu().numpy())
            return torch.from_numpy(calibrated).to(logits_RC.device, torch.float32)
        return logits_RC.sigmoid() if self.kind == "multilabel" else logits_RC.softmax(dim=1)

    def predict(
        self, signal: Signal, *, rate_hz: float, leads: Sequence[str], unit: str, batch_size: int = 64
    ) -> list[tuple[str, ...]] | list[str] | Tensor:
        """Return what the model says of each record.

        Args:
            signal: As for `predict_logits`, like all that follow.
            rate_hz: Its sampling rate.
            leads: Its lead names.
            unit: mV, uV or V.
            batch_size: Windows that the encoder takes at a time.

        Returns:
            Of a multilabel model the labels that reach their threshold, of a multiclass model the most probable one,
            of a regression value_RC.

        Raises:
            LeadError: As `ECGEncoder.embed`.
            SignalError: As `ECGEncoder.embed`.
        """
        logits_RC = self.predict_logits(signal, rate_hz=rate_hz, leads=leads, unit=unit, batch_size=batch_size)
        if self.kind == "regression":
            return logits_RC
        probability_RC = self.probabilities(logits_RC)
        if self.kind == "multiclass":
            return [self.labels[place] for place in probability_RC.argmax(dim=1).tolist()]
        thresholds = self.thresholds or (THRESHOLD,) * len(self.labels)
        return [
            tuple(label for label, value, least in zip(self.labels, row, thresholds, strict=True) if value >= least)
            for row in probability_RC.tolist()
        ]

    def _reference_outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "features_RD": self.encoder.embed_reference(tensors),
            "logits_RC": self.predict_logits(tensors[reference.RECORDINGS], **reference.HOW),
        }

    def now(self) -> ClassifierSettings:
        """Return the settings with what was changed since: aggregation, windows, thresholds, calibration."""
        return replace(
            self.settings,
            aggregate=self.aggregate,
            window_s=self.window_s,
            stride_s=self.stride_s,
            thresholds=None if self.thresholds is None else tuple(map(float, self.thresholds)),
            calibration=None if self.calibration is None else self.calibration.to_dict(),
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        content = {
            "encoder": config.to_dict(self.encoder.encoder.config),
            "signal": config.to_dict(self.encoder.signal),
            CLASSIFIER: asdict(self.now()),
            "ecgfm": {"format": FORMAT, "version": __version__},
        }
        self._write(save_directory, content, self)

    def _card_text(self, name: str) -> str:
        if self.card is not None:
            return self.card
        return classifier_card(
            name,
            asdict(self.now()),
            config.to_dict(self.encoder.encoder.config),
            self.encoder.signal,
            sum(weight.numel() for weight in self.parameters()),
            encoder_card=self.encoder.card,
        )


def _names(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"labels must be a list of names such as ['AF', 'LBBB'], got {labels!r}")
    return tuple(map(str, labels))


def _check_given(given: Mapping[str, Any], saved: ClassifierSettings, where: str | Path) -> None:
    for name, value in given.items():
        if value != getattr(saved, name):
            raise ConfigError(
                f"{where} is a classifier with {name}={getattr(saved, name)!r}, not {value!r}; leave {name} out, or "
                "put a new head on its encoder: "
                "ECGClassifier.from_pretrained(ECGClassifier.from_pretrained(...).encoder, labels=[...])"
            )
