"""Reference tensors beside the weights: a made-up recording with what comes of it, so that a loader can check itself.

`reference.safetensors` holds two recordings, in microvolt, at 250 Hz and with the leads in reverse, and what the
model that wrote it made of them: leads, unit, filter, resampling, scale and weights all take part.

Shapes: R recordings, L leads, T samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecgfm.errors import ContractError
from ecgfm.hub.fetch import whole
from ecgfm.leads import LEADS
from ecgfm.rng import generator

REFERENCE = "reference.safetensors"
RECORDINGS = "recording_RLT"
HOW: dict[str, Any] = {"rate_hz": 250.0, "leads": LEADS[::-1], "unit": "uV"}
"""How the recordings are to be read."""
SECONDS = 3
TOLERANCE = 1e-4
"""In float32 on a CPU. Distance over norm, for the default of every encoder: 4e-7 at most between one and two threads
or batches of one and two; from 1.7e-3 for a scale that is off by 1 %, from 3.5e-3 for I and II in each other's place,
mostly above 1e-4 for one matrix of weights that is off by 1 %. It leaves room for other processors and libraries."""
COARSE_TOLERANCE = 3e-2
"""With weights of 16 bits (bfloat16 on a CPU: 4e-3 for the transformers), or on a GPU, where convolutions have 10 bits
of mantissa by default (TF32). It finds a wrong lead, unit or filter, and no small fault."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """How far a model is from its reference tensors."""

    difference: float
    """The largest distance over norm, of any recording and any of the model's outputs."""
    tolerance: float
    """Up to which it counts as the same."""


def recordings_RLT() -> NDArray[np.float32]:
    """Return the two recordings, shape (2, 12, 750), in microvolt, leads V6 to I: beats of three waves, and noise."""
    draw = generator(0, "reference recording")
    time_s = np.arange(SECONDS * int(HOW["rate_hz"])) / HOW["rate_hz"]
    rows = []
    for seconds_a_beat in (0.8, 0.63):
        phase = (time_s / seconds_a_beat) % 1.0
        waves = [np.exp(-(((phase - at) / wide) ** 2)) for at, wide in ((0.2, 0.03), (0.4, 0.015), (0.7, 0.06))]
        lead = {
            name: 900.0 * draw.normal(size=3) @ np.stack(waves) + 10.0 * draw.normal(size=len(time_s))
            for name in ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
        }
        one, two = lead["I"], lead["II"]
        lead |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
        rows.append(np.stack([lead[name] for name in HOW["leads"]]))
    return np.stack(rows).astype(np.float32)


def write_reference(path: Path, outputs: Mapping[str, Tensor]) -> None:
    """Write the recordings and what a model made of them."""
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in outputs.items()}
    with whole(path) as file:
        save_file({RECORDINGS: torch.from_numpy(recordings_RLT()), **tensors}, file, metadata={"format": "pt"})


def read_reference(path: Path) -> dict[str, Tensor]:
    """Return the tensors of `reference.safetensors`.

    Raises:
        ContractError: It is damaged or something else.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ContractError(f"{path} is not a safetensors file: {error}; download or export it again") from error
    if RECORDINGS not in tensors or len(tensors) < 2:
        raise ContractError(f"{path} does not hold {RECORDINGS} and what comes of it; download or export it again")
    return tensors


def compare(model: nn.Module, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> SelfTest:
    """Return how far outputs are from those of the reference.

    Raises:
        ContractError: They are not the same within the tolerance of the model's weights and device.
    """
    weight = next(model.parameters())
    exact = weight.dtype == torch.float32 and weight.device.type == "cpu"
    tolerance = TOLERANCE if exact else COARSE_TOLERANCE
    far = []
    for name, value in wanted.items():
        if name == RECORDINGS:
            continue
        if name not in got or got[name].shape != value.shape:
            raise ContractError(
                f"the reference tensors hold {name} {tuple(value.shape)}, which this model does not give; they do not "
                "belong together: download or export again"
            )
        far_R = (got[name].detach().cpu().double() - value.double()).flatten(1).norm(dim=1)
        # A head that begins at zero gives zeros: what is smaller than 1e-3 counts as that.
        far.append(far_R / value.double().flatten(1).norm(dim=1).clamp(min=1e-3))
    worst = float(torch.cat(far).max())  # of tensors: Python's max passes over NaN
    if not worst <= tolerance:
        raise ContractError(
            f"the model does not give what it gave when it was saved: {worst:.2g} from its reference tensors, where "
            f"{tolerance:g} is allowed; the files do not belong together, or this version computes something else: "
            "download again, or use the version of ecgfm that config.json names"
        )
    return SelfTest(difference=worst, tolerance=tolerance)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have all norms and dropout in evaluation, and give each module its own mode back."""
    modes = [(module, module.training) for module in model.modules() if module.training]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
