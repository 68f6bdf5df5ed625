"""The signal contract, applied: from recordings as they come to what an encoder takes.

    preprocessor = ECGPreprocessor.from_pretrained("someone/ecg-jepa-vit-s")     # no weights are downloaded
    windows_BLT, row_B = preprocessor.windows(signal, rate_hz=257, leads=["II", "I", ...], unit="uV")

Leads by name, derived where I and II give them; unit; high-pass filter; resampling; windows; and `normalise`, the
scale and the clip, which is apart because an encoder does it on its own device.

Shapes: B windows, R records, L leads, T samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm import __version__, config
from ecgfm.errors import ConfigError, ContractError, SignalError
from ecgfm.hub.fetch import CONFIG, FromHub, fetch, read_entries, whole
from ecgfm.hub.recordings import Signal, check_leads, recordings, to_contract, windows
from ecgfm.leads import LEADS
from ecgfm.signal.contract import LEAST_STD_MV, SignalContract

PREPROCESSOR = "preprocessor_config.json"
"""What a preprocessor saves of its own; beside an encoder's weights, config.json says the same and goes first."""


class ECGPreprocessor:
    """Makes of a recording what a signal contract demands.

    Args:
        contract: The signal contract.
        patch_samples: Windows are cut to a multiple of so many samples, an encoder's step.

    Raises:
        ContractError: The contract names a lead that this version does not know.
    """

    contract: SignalContract
    """Rate, leads, unit, filter, scale and length of the windows."""
    patch_samples: int
    """Windows are a multiple of so many samples."""

    def __init__(self, contract: SignalContract, *, patch_samples: int = 1) -> None:
        unknown = [lead for lead in contract.leads if lead not in LEADS]
        if unknown:
            raise ContractError(f"the signal contract has the lead {unknown[0]!r}, which ecgfm {__version__} lacks")
        if not 1 <= patch_samples <= contract.window_samples:
            raise ContractError(
                f"patch_samples must be 1 to the window's {contract.window_samples} samples, got {patch_samples}"
            )
        self.contract = contract
        self.patch_samples = patch_samples
        self._scale_L1: tuple[Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        seconds = self.contract.window_samples / self.contract.rate_hz
        return f"ECGPreprocessor({len(self.contract.leads)} leads, {self.contract.rate_hz:g} Hz, {seconds:g} s, mV)"

    def __call__(self, signal: Signal, *, rate_hz: float, leads: Sequence[str], unit: str) -> list[NDArray[np.float32]]:
        """Return each record in millivolt with the contract's leads, filter and rate, shape (L, T), at its own length.

        Args:
            signal: NumPy or torch, (L, T) or (R, L, T), or a list of (L, T) of any lengths.
            rate_hz: Its sampling rate.
            leads: Its lead names, in any order and case; III, aVR, aVL and aVF may be left out.
            unit: mV, uV or V.

        Raises:
            LeadError: Leads are missing, doubled, or not names.
            SignalError: The signal is not the ECG it is said to be; the message has the fix.
        """
        return list(self.prepared(signal, rate_hz=rate_hz, leads=leads, unit=unit))

    def prepared(
        self, signal: Signal, *, rate_hz: float, leads: Sequence[str], unit: str
    ) -> Iterator[NDArray[np.float32]]:
        """Yield what `__call__` returns, one record after another."""
        leads = check_leads(leads)
        records = recordings(signal, len(leads))
        for row, record in enumerate(records):
            name = f"record {row} of {len(records)}" if len(records) > 1 else "the signal"
            yield to_contract(record, rate_hz=float(rate_hz), leads=leads, unit=unit, contract=self.contract, name=name)

    def windows(
        self,
        signal: Signal,
        *,
        rate_hz: float,
        leads: Sequence[str],
        unit: str,
        length: int | None = None,
        stride: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return windows_BLT in millivolt, and row_B, the record that each is of.

        Args:
            signal: As for `__call__`, like all that follow.
            rate_hz: Its sampling rate.
            leads: Its lead names.
            unit: mV, uV or V.
            length: Samples of a window at the contract's rate, cut to whole patches; the contract's by default.
            stride: Samples from one window to the next; by default windows are evenly spaced, as few as cover the
                record. See `places`.

        Raises:
            LeadError: As `__call__`.
            SignalError: As `__call__`; or records are shorter than a window, by different lengths.
        """
        parts, rows = [], []
        for row, record in enumerate(self.prepared(signal, rate_hz=rate_hz, leads=leads, unit=unit)):
            for start, stop in self.places(record.shape[-1], length=length, stride=stride):
                parts.append(record[:, start:stop])
                rows.append(row)
        lengths = sorted({part.shape[-1] for part in parts})
        if len(lengths) > 1:
            raise SignalError(
                f"some records are shorter than a window: windows have {lengths[0]} to {lengths[-1]} samples at "
                f"{self.contract.rate_hz:g} Hz and make no one array; give length={lengths[0]}, or leave short "
                "records out"
            )
        return np.stack(parts), np.asarray(rows, dtype=np.int64)

    def places(self, samples: int, *, length: int | None = None, stride: int | None = None) -> list[tuple[int, int]]:
        """Return the [start, stop) of the windows of a record.

        Without a stride they are evenly spaced, as few as cover the record. With one they begin at its multiples, and
        a last one ends with the record where those do not. A record that is no longer than a window gives one, cut to
        whole patches.

        Args:
            samples: Of the record, at the contract's rate.
            length: Samples of a window.
            stride: Samples from one window to the next.

        Raises:
            ConfigError: A window is shorter than a patch, or the stride below 1.
        """
        window = self.window_samples(length)
        if stride is not None and stride < 1:
            raise ConfigError(f"the stride of windows must be at least one sample, got {stride}")
        if stride is None or samples <= window:
            return list(windows(samples, window, self.patch_samples))
        starts = list(range(0, samples - window + 1, stride))
        if starts[-1] + window < samples:
            starts.append(samples - window)
        return [(start, start + window) for start in starts]

    def window_samples(self, length: int | None = None) -> int:
        """Return the samples of a window, `length` or the contract's, cut to whole patches.

        Raises:
            ConfigError: There is no whole patch in it.
        """
        wanted = self.contract.window_samples if length is None else length
        if int(wanted) != wanted or wanted < self.patch_samples:
            raise ConfigError(
                f"a window of {wanted} samples is no whole number of at least {self.patch_samples}, the encoder's "
                f"step; give samples at {self.contract.rate_hz:g} Hz, such as length={self.contract.window_samples}"
            )
        return int(wanted) // self.patch_samples * self.patch_samples

    def samples(self, seconds: float) -> int:
        """Return the samples of so many seconds at the contract's rate, rounded."""
        return round(seconds * self.contract.rate_hz)

    def normalise(self, signal_BLT: Tensor) -> Tensor:
        """Return millivolt as the encoder was trained on it: centred and scaled per lead, clipped; float32.

        Args:
            signal_BLT: Millivolt, with the contract's leads in its order. With the scale "record", mean and deviation
                are those of each window, so give the very windows that an encoder is given.
        """
        contract = self.contract
        signal_BLT = signal_BLT.float()
        if contract.scale == "record":
            var, mean = torch.var_mean(signal_BLT, dim=2, correction=0, keepdim=True)
            std = var.sqrt().clamp(min=LEAST_STD_MV)
        else:
            mean, std = self._scale(signal_BLT.device)
        return ((signal_BLT - mean) / std).clamp(-contract.clip, contract.clip)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and deviation, float32 of shape (L, 1).

        They are no buffers: a module that is cast to bfloat16 would round those too. On a GPU they are kept: a copy to
        it from the host's ordinary memory has the host wait for the device.
        """
        held = self._scale_L1
        if held is not None and held[0].device == device:
            return held
        with torch.inference_mode(False):
            mean, std = (
                torch.tensor(values, dtype=torch.float32, device=device)[:, None]
                for values in (self.contract.mean_mv, self.contract.std_mv)
            )
        if device.type == "cuda" and not torch.compiler.is_compiling():
            self._scale_L1 = (mean, std)
        return mean, std

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **how: Unpack[FromHub]) -> Self:
        """Return the preprocessor of a published encoder or classifier, or one that was saved alone.

        Args:
            name_or_folder: A folder, or `owner/name` on the Hub.
            how: revision, cache_dir, force_download, local_files_only, token, as for `ECGEncoder.from_pretrained`.

        Raises:
            ContractError: There is none, or this version cannot honour it.
        """
        alone = Path(name_or_folder) / PREPROCESSOR
        name = PREPROCESSOR if alone.is_file() and not alone.with_name(CONFIG).is_file() else CONFIG
        path = fetch(name_or_folder, [name], **how).paths[name]
        content = read_entries(path, ("signal", "encoder") if name == CONFIG else ("signal", "windows"))
        try:
            contract = config.from_dict(SignalContract, content["signal"], "signal")
        except ConfigError as error:
            raise ContractError(f"ecgfm {__version__} cannot honour {path}: {error}; upgrade ecgfm") from error
        patch: Any = content["encoder" if name == CONFIG else "windows"].get("patch_samples")
        if not isinstance(patch, int):
            raise ContractError(f"{path} does not say patch_samples, got {patch!r}; export it again")
        return cls(contract, patch_samples=patch)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`, which `from_pretrained` reads back."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "signal": config.to_dict(self.contract),
            "windows": {"patch_samples": self.patch_samples},
            "ecgfm": {"version": __version__},
        }
        with whole(folder / PREPROCESSOR) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
