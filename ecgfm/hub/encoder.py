"""A pretrained encoder with its signal contract: from arrays as they come to features.

    encoder = ECGEncoder.from_pretrained("someone/ecg-jepa-vit-s")
    features_BD = encoder.embed(signal, rate_hz=257, leads=["II", "I", ...], unit="uV")

On the Hub it is three files: `config.json` (the encoder's settings and the signal contract),
`model.safetensors` and `README.md`. Nothing else is read, and nothing is ever unpickled.

Shapes: B records or windows, L leads, T samples, N tokens, D width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecgfm import __version__, config
from ecgfm.encoders.base import Encoder, build_encoder
from ecgfm.errors import ConfigError, ContractError
from ecgfm.hub.card import model_card, renamed
from ecgfm.hub.recordings import Signal, check_leads, recordings, to_contract, windows
from ecgfm.leads import LEADS
from ecgfm.rng import derive
from ecgfm.signal.contract import LEAST_STD_MV, SignalContract

FORMAT = 2
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
README = "README.md"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
UPGRADE = "pip install --upgrade ecgfm, or use the version that wrote it"


class ECGEncoder(nn.Module, PyTorchModelHubMixin):
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
    card: str | None
    """Text of the model card; None writes one from the settings."""

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
        self.encoder = build_encoder(settings)
        self.card = None

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
        _, features_BD = self.encoder.encode(self.normalise(signal_BLT))
        return features_BD

    def normalise(self, signal_BLT: Tensor) -> Tensor:
        """Return millivolt as the encoder was trained on it: centred and scaled per lead, clipped."""
        signal_BLT = signal_BLT.float()
        if self.signal.scale == "record":
            var, mean = torch.var_mean(signal_BLT, dim=2, correction=0, keepdim=True)
            std = var.sqrt().clamp(min=LEAST_STD_MV)
        else:
            # Made here and not kept as buffers: a module that is cast to bfloat16 would round its buffers too.
            mean, std = (
                torch.tensor(values, dtype=torch.float32, device=signal_BLT.device)[:, None]
                for values in (self.signal.mean_mv, self.signal.std_mv)
            )
        normal_BLT = ((signal_BLT - mean) / std).clamp(-self.signal.clip, self.signal.clip)
        return normal_BLT.to(next(self.parameters()).dtype)

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
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            return self._embed(signal, float(rate_hz), leads, unit, batch_size)
        finally:
            for module, training in modes:
                module.training = training

    def _embed(self, signal: Signal, rate_hz: float, leads: Sequence[str], unit: str, batch_size: int) -> Tensor:
        check_leads(leads)
        records = recordings(signal, len(leads))
        device = next(self.parameters()).device
        features_BD = torch.zeros(len(records), self.encoder.config.width, device=device)
        waiting: dict[int, list[tuple[int, Tensor]]] = {}  # windows by length, each with its share of a record

        def run(items: list[tuple[int, Tensor]]) -> None:
            window_BLT = torch.stack([window for _, window in items]).to(device)
            rows = torch.tensor([row for row, _ in items], device=device)
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
        return features_BD / torch.tensor(counts, device=device)[:, None]

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

        Raises:
            ContractError: A file is missing, damaged, or asks for what this version does not know; or the
                device cannot be used.
        """
        where = str(pretrained_model_name_or_path)
        if Path(where).is_dir():
            files = {name: Path(where) / name for name in (CONFIG, WEIGHTS, README)}
            for name in (CONFIG, WEIGHTS):
                if not files[name].is_file():
                    raise ContractError(
                        f"{files[name]} does not exist; give a folder that tools/export.py or save_pretrained wrote"
                    )
        else:
            options = {
                "revision": revision,
                "cache_dir": cache_dir,
                "force_download": force_download,
                "local_files_only": local_files_only,
                "token": token,
            }
            files = {name: _download(where, name, options) for name in (CONFIG, WEIGHTS)}
            try:
                files[README] = Path(hf_hub_download(where, README, **options))  # type: ignore[arg-type]
            except (EntryNotFoundError, HfHubHTTPError):
                files[README] = Path()  # the card explains, it decides nothing
        with torch.random.fork_rng(devices=[]):  # the random weights that are replaced must move no generator
            model = cls(**_read_config(files[CONFIG]))
        load_weights_(model.encoder, files[WEIGHTS])
        if files[README].is_file():
            model.card = files[README].read_text(encoding="utf-8")
        try:
            return model.to(map_location).eval()
        except (RuntimeError, AssertionError) as error:  # torch raises either, for no driver or a wrong name
            reason = str(error).splitlines()[0]
            raise ContractError(f"device {str(map_location)!r} cannot be used: {reason}; 'cpu' always can") from error

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the three files; the card's example then names `repo_id`. See the mixin for the options.

        Raises:
            ContractError: The Hub refuses the name or the token.
        """
        if not REPOSITORY.fullmatch(repo_id):
            raise ContractError(f"{repo_id!r} is not a name on the Hub; give owner/name")
        before = self.card
        self.card = renamed(self._card_text(repo_id), repo_id)
        try:
            return str(super().push_to_hub(repo_id, **options))
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
            raise ContractError(
                f"{repo_id} cannot be written: {error}; log in with `hf auth login` as somebody who may"
            ) from error
        finally:
            self.card = before

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write all three files; the mixin leaves alone what is there."""
        settings = {
            "encoder": config.to_dict(self.encoder.config),
            "signal": config.to_dict(self.signal),
            "ecgfm": {"format": FORMAT, "version": __version__},
        }
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.encoder.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS, metadata={"format": "pt"})
        (save_directory / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (save_directory / README).write_text(self._card_text(save_directory.name), encoding="utf-8")

    def _card_text(self, name: str) -> str:
        if self.card is not None:
            return self.card
        parameters = sum(weight.numel() for weight in self.encoder.parameters())
        return model_card(name, config.to_dict(self.encoder.config), self.signal, parameters)


def load_weights_(encoder: Encoder, path: Path) -> None:
    """Load safetensors into an encoder, all of them and nothing else.

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


def _read_config(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the three entries of config.json."""
    try:
        content = config.read_json(path)
    except ConfigError as error:
        raise ContractError(f"{error}; download or export it again") from error
    entries = ("encoder", "signal", "ecgfm")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name in entries):
        raise ContractError(f"{path} is not an encoder of ecgfm: it must hold the objects {', '.join(entries)}")
    return {name: content[name] for name in entries}


def _download(repo_id: str, name: str, options: Mapping[str, Any]) -> Path:
    """Return one file of a repository on the Hub."""
    try:
        return Path(hf_hub_download(repo_id, name, **options))
    except HFValidationError as error:
        raise ContractError(f"{repo_id} is neither a folder nor a name on the Hub (owner/name)") from error
    except LocalEntryNotFoundError as error:
        raise ContractError(
            f"{name} of {repo_id} is not in the cache and the Hub was not asked or not reached; "
            "check the network, or give a folder"
        ) from error
    except EntryNotFoundError as error:
        raise ContractError(f"{repo_id} on the Hub has no {name}: it is not an encoder of ecgfm") from error
    except RepositoryNotFoundError as error:
        raise ContractError(
            f"{repo_id} is neither a folder nor a repository on the Hub that you may read; "
            "check the name, or log in when it is private"
        ) from error
    except HfHubHTTPError as error:
        raise ContractError(f"{name} of {repo_id} cannot be downloaded: {error}") from error
