"""A pretrained encoder with its signal contract: from arrays as they come to features.

    encoder = ECGEncoder.from_pretrained("someone/ecg-jepa-vit-s")
    features_BD = encoder.embed(signal, rate_hz=257, leads=["II", "I", ...], unit="uV")

On the Hub it is four files: `config.json` (the encoder's settings and the signal contract), `model.safetensors`,
`reference.safetensors` (a recording and its features, for `self_test`) and `README.md`. Nothing else is read, and
nothing is ever unpickled.

Shapes: B records or windows, L leads, T samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ecgfm import __version__, config
from ecgfm.encoders.base import Encoder, build_encoder
from ecgfm.errors import ConfigError, ContractError
from ecgfm.hub import reference
from ecgfm.hub.card import model_card
from ecgfm.hub.fetch import CONFIG as CONFIG
from ecgfm.hub.fetch import README as README
from ecgfm.hub.fetch import REPOSITORY as REPOSITORY
from ecgfm.hub.fetch import WEIGHTS as WEIGHTS
from ecgfm.hub.fetch import fetch, read_entries
from ecgfm.hub.model import HubModel
from ecgfm.hub.preprocessor import ECGPreprocessor
from ecgfm.hub.recordings import Signal, check_leads, recordings, to_contract, windows
from ecgfm.hub.reference import REFERENCE, evaluating
from ecgfm.leads import LEADS
from ecgfm.rng import derive
from ecgfm.signal.contract import SignalContract

FORMAT = 2
MODEL_TYPE = "ecgfm"
"""What `transformers` tells our config.json by; see hub/transformers.py."""
ENTRIES = ("encoder", "signal", "ecgfm")
CLASSIFIER = "classifier"
"""The entry of config.json that a classifier has besides."""
ModuleT = TypeVar("ModuleT", bound=nn.Module)
UPGRADE = "pip install --upgrade ecgfm, or use the version that wrote it"


class ECGEncoder(HubModel):
    """An encoder that knows what its input must be, and makes it so.

    Args:
        encoder: Settings of the encoder with their kind, as `config.json` has them.
        signal: The signal contract, likewise.
        ecgfm: Format and version of what wrote the two; this version when left out.

    Raises:
        ContractError: This version cannot honour the settings or the contract.
    """

    signal: SignalContract
    """Rate, leads, unit, filter, scale and length of the input."""
    preprocessor: ECGPreprocessor
    """The signal contract applied, up to what `features` takes."""

    def __init__(
        self, encoder: Mapping[str, Any], signal: Mapping[str, Any], ecgfm: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        written = {"format": FORMAT, "version": __version__} if ecgfm is None else ecgfm
        if written.get("format") != FORMAT:
            raise ContractError(
                f"the encoder has format {written.get('format')!r}, this version reads {FORMAT}: {UPGRADE}"
            )
        try:
            self.signal = config.from_dict(SignalContract, signal, "signal")
            settings = config.from_dict(Encoder.Config, encoder, "encoder")
        except ConfigError as error:
            raise ContractError(
                f"ecgfm {__version__} cannot honour what {written.get('version')} wrote: {error}; {UPGRADE}"
            ) from error
        _check_contract(settings, self.signal)
        self.preprocessor = ECGPreprocessor(self.signal, patch_samples=settings.patch_samples)
        self.encoder = build_encoder(settings)

    def forward(self, signal_BLT: Tensor) -> Tensor:
        """Return tokens_BND of a signal that is normalised already."""
        tokens_BND: Tensor = self.encoder(signal_BLT)
        return tokens_BND

    def features(self, signal_BLT: Tensor) -> Tensor:
        """Return features_BD with their gradients, for fine-tuning.

        Args:
            signal_BLT: Millivolt, at the contract's rate, with its leads in its order; T a multiple of
                the encoder's `patch_samples`.
        """
        return self.encode(signal_BLT)[1]

    def encode(self, signal_BLT: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens_BND and features_BD with their gradients; see `features`."""
        return self.encoder.encode(self.normalise(signal_BLT))

    def normalise(self, signal_BLT: Tensor) -> Tensor:
        """Return millivolt as the encoder was trained on it: centred and scaled per lead, clipped."""
        return self.preprocessor.normalise(signal_BLT).to(next(self.parameters()).dtype)

    @torch.no_grad()
    def embed(self, signal: Signal, *, rate_hz: float, leads: Sequence[str], unit: str, batch_size: int = 64) -> Tensor:
        """Return features_BD of recordings as they come, float32, on the encoder's device.

        A record longer than the contract's window is cut into evenly spaced, overlapping windows whose
        features are averaged; a shorter one is taken as it is, cut to whole patches. Norms and the like are in
        evaluation here, whatever mode the encoder is in and is left in.

        Args:
            signal: NumPy or torch, (L, T) or (B, L, T), or a list of (L, T) of any lengths.
            rate_hz: Its sampling rate.
            leads: Its lead names, in any order and case; III, aVR, aVL and aVF may be left out, and leads that the
                contract does not name.
            unit: mV, uV or V.
            batch_size: Windows that the encoder takes at a time.

        Raises:
            LeadError: Leads are missing, doubled, or not names.
            SignalError: The signal is not the ECG it is said to be; the message has the fix.
        """
        with evaluating(self):
            return self._embed(signal, float(rate_hz), leads, unit, batch_size)

    def _embed(self, signal: Signal, rate_hz: float, leads: Sequence[str], unit: str, batch_size: int) -> Tensor:
        leads = check_leads(leads)
        records = recordings(signal, len(leads))
        device = next(self.parameters()).device
        features_BD = torch.zeros(len(records), self.encoder.config.width, device=device)
        waiting: dict[int, list[tuple[int, Tensor]]] = {}  # windows by length, each with its share of a record

        def run(items: list[tuple[int, Tensor]]) -> None:
            window_BLT = to_device_soon(torch.stack([window for _, window in items]), device)
            rows = to_device_soon(torch.tensor([row for row, _ in items]), device)
            features_BD.index_add_(0, rows, self.features(window_BLT).float())

        counts = []
        for row, record in enumerate(records):
            name = f"record {row} of {len(records)}" if len(records) > 1 else "the signal"
            ready = torch.from_numpy(
                to_contract(record, rate_hz=rate_hz, leads=leads, unit=unit, contract=self.signal, name=name)
            )
            places = list(windows(ready.shape[-1], self.signal.window_samples, self.encoder.config.patch_samples))
            counts.append(len(places))
            for start, stop in places:
                items = waiting.setdefault(stop - start, [])
                items.append((row, ready[:, start:stop]))
                if len(items) >= batch_size:
                    run(waiting.pop(stop - start))
        for items in waiting.values():
            run(items)
        if max(counts) == 1:
            return features_BD
        return features_BD / to_device_soon(torch.tensor(counts), device)[:, None]

    @torch.no_grad()
    def tokens(
        self, signal: Signal, *, rate_hz: float, leads: Sequence[str], unit: str, batch_size: int = 64
    ) -> tuple[Tensor, Tensor]:
        """Return tokens_BND of all windows of recordings as they come, and row_B, the record that each is of.

        Windows are those of `embed`: the mean over a record's windows of the pooled tokens is its features. Token n
        of a window sees the samples from n * patch_samples on, or those of one lead (see the encoder).

        Args:
            signal: As for `embed`, like all that follow.
            rate_hz: Its sampling rate.
            leads: Its lead names.
            unit: mV, uV or V.
            batch_size: Windows that the encoder takes at a time.

        Raises:
            LeadError: As `embed`.
            SignalError: As `embed`; or records are shorter than a window, by different lengths.
        """
        windows_BLT, row_B = self.preprocessor.windows(signal, rate_hz=rate_hz, leads=leads, unit=unit)
        device = next(self.parameters()).device
        with evaluating(self):
            several = torch.split(torch.from_numpy(windows_BLT), batch_size)
            parts = [self.encode(part_BLT.to(device))[0].float() for part_BLT in several]
        return torch.cat(parts), torch.from_numpy(row_B)

    def _reference_outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"features_RD": self.embed_reference(tensors)}

    def embed_reference(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return features_RD of the recordings of `reference.safetensors`."""
        with evaluating(self):
            return self.embed(tensors[reference.RECORDINGS], **reference.HOW)

    def exported(self, *, batch_size: int = 1, samples: int | None = None) -> torch.export.ExportedProgram:
        """Return millivolt -> features as one graph, `signal_BLT -> features_BD`, for a fixed B and T.

        It normalises, encodes and pools; leads, filter and resampling are the preprocessor's. `torch.export.save`
        writes it, for programs that do not have this package.

        Args:
            batch_size: B.
            samples: T; the contract's window by default. Cut to whole patches.
        """
        samples = self.preprocessor.window_samples(samples)
        example_BLT = torch.zeros(batch_size, len(self.signal.leads), samples, device=next(self.parameters()).device)
        model = _Features(self)
        with evaluating(model), torch.no_grad():
            model(example_BLT)  # positions are made once, before the graph is drawn
            return torch.export.export(model, (example_BLT,))

    def with_pooling(self, pooling: str, *, seed: int = 0) -> Self:
        """Return an encoder with a copy of these weights, in the same mode, and with another pool.

        That is for whoever trains on `features`: an attentive pool begins at random, and reads a frozen encoder as
        in the linear protocol of Weimann and Conrad 2024 once it is trained; the model is saved with it.

        Args:
            pooling: As in the encoder's settings: mean, register or attentive.
            seed: Of an attentive pool's weights.

        Raises:
            ContractError: The encoder has no such pool.
        """
        settings = {**config.to_dict(self.encoder.config), "pooling": pooling}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "pool"))
            model = type(self)(encoder=settings, signal=config.to_dict(self.signal))
        weights = {name: weight for name, weight in self.encoder.state_dict().items() if not name.startswith("pooler.")}
        model.encoder.load_state_dict(weights, strict=False)
        first = next(self.parameters())
        return model.to(first.device, first.dtype).train(self.training)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # fewer options than the mixin: ours take no model settings
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str | torch.device = "cpu",
        check: bool = False,
    ) -> Self:
        """Return a published encoder in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or `owner/name` on the Hub.
            revision: Branch, tag or commit on the Hub.
            cache_dir: Where downloads are kept, if not in the usual place.
            force_download: Download again what is there already.
            local_files_only: Do not ask the network.
            token: Of the Hub, if not the one that is logged in.
            map_location: Device of the weights.
            check: Run `self_test` before the encoder is given out.

        Raises:
            ContractError: A file is missing, damaged, or asks for what this version does not know; or the
                device cannot be used; or the self test fails.
        """
        found = fetch(
            pretrained_model_name_or_path,
            (CONFIG, WEIGHTS),
            (README, REFERENCE),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        entries = read_entries(found.paths[CONFIG], ENTRIES, (CLASSIFIER,))
        if CLASSIFIER in entries:
            raise ContractError(
                f"{pretrained_model_name_or_path} is a classifier; load it with ECGClassifier.from_pretrained, its "
                "encoder is .encoder"
            )
        with torch.random.fork_rng(devices=[]):  # the random weights that are replaced must move no generator
            model = cls(**entries)
        load_weights_(model.encoder, found.paths[WEIGHTS])
        model._take_from(found)
        model = to_device(model, map_location).eval()
        if check:
            model.self_test()
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        settings = {
            "model_type": MODEL_TYPE,
            "encoder": config.to_dict(self.encoder.config),
            "signal": config.to_dict(self.signal),
            "ecgfm": {"format": FORMAT, "version": __version__},
        }
        self._write(save_directory, settings, self.encoder)

    def _card_text(self, name: str) -> str:
        if self.card is not None:
            return self.card
        parameters = sum(weight.numel() for weight in self.encoder.parameters())
        return model_card(name, config.to_dict(self.encoder.config), self.signal, parameters)


class _Features(nn.Module):
    """An encoder's features as a module's forward, which is what torch.export takes."""

    def __init__(self, model: ECGEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, signal_BLT: Tensor) -> Tensor:
        """Return features_BD of millivolt."""
        return self.model.features(signal_BLT)


def to_device(model: ModuleT, device: str | torch.device) -> ModuleT:
    """Move a model.

    Raises:
        ContractError: The device is not there.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, for no driver or a wrong name
        reason = str(error).splitlines()[0]
        raise ContractError(f"device {str(device)!r} cannot be used: {reason}; 'cpu' always can") from error


def to_device_soon(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host's memory on a device; the host does not wait for a GPU to have it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def load_weights_(encoder: nn.Module, path: Path) -> None:
    """Load safetensors into an encoder or a classifier, all of them and nothing else.

    Raises:
        ContractError: The file is damaged, or a tensor is missing, superfluous, of another shape or not finite.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ContractError(f"{path} is not a safetensors file: {error}; download or export it again") from error
    wanted = encoder.state_dict()
    for what, names in (
        ("lacks", wanted.keys() - weights.keys()),
        ("has the superfluous", weights.keys() - wanted.keys()),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ContractError(
                f"{path} {what} {listed}; it does not belong to this {CONFIG}: export or download again"
            )
    for name, weight in weights.items():
        if weight.shape != wanted[name].shape:
            raise ContractError(
                f"{path}: {name} has shape {tuple(weight.shape)}, {CONFIG} says {tuple(wanted[name].shape)}; "
                "the two do not belong together: export or download again"
            )
        if not weight.isfinite().all():
            raise ContractError(f"{path}: {name} holds NaN or infinite values; the training has diverged")
    encoder.load_state_dict(weights, strict=True)


def _check_contract(encoder: Encoder.Config, signal: SignalContract) -> None:
    unknown = [lead for lead in signal.leads if lead not in LEADS]
    if unknown:
        raise ContractError(
            f"the signal contract has the lead {unknown[0]!r}, which this version does not know: {UPGRADE}"
        )
    if len(signal.leads) != encoder.num_leads:
        raise ContractError(
            f"the encoder takes {encoder.num_leads} leads and the signal contract has {len(signal.leads)}; "
            "the two do not belong together: export again"
        )
    if signal.window_samples < encoder.patch_samples or signal.rate_hz < encoder.patch_samples:
        raise ContractError(
            f"a patch of {encoder.patch_samples} samples is longer than the window of {signal.window_samples} "
            f"samples, or than 1 s at {signal.rate_hz:g} Hz; export again"
        )
