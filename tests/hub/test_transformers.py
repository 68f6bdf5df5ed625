"""AutoModel of transformers loads our encoders once our module is imported, and no code from the Hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm import ECGEncoder
from ecgfm.errors import ContractError
from ecgfm.leads import LEADS

HOW: dict[str, Any] = {"rate_hz": 500, "leads": LEADS, "unit": "mV"}

transformers = pytest.importorskip("transformers")


def test_auto_model_gives_the_encoders_features(encoder: ECGEncoder, ecg: NDArray[np.float64], tmp_path: Path) -> None:
    import ecgfm.hub.transformers as registered

    encoder.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
    assert isinstance(model, registered.ECGModel) and not model.training
    windows_BLT, _ = encoder.preprocessor.windows(ecg, **HOW)
    with torch.no_grad():
        got = model(torch.from_numpy(windows_BLT))
    assert torch.equal(got.pooler_output, encoder.embed(ecg, **HOW))
    assert got.last_hidden_state.shape == (1, 100, 16)
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    assert settings.encoder["width"] == 16 and settings.signal["rate_hz"] == 500.0
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(ECGEncoder.from_pretrained(tmp_path / "again", check=True).embed(ecg, **HOW), got.pooler_output)


def test_its_refusals_are_ours(encoder: ECGEncoder, tmp_path: Path) -> None:
    import ecgfm.hub.transformers  # noqa: F401

    encoder.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(ContractError, match="not a safetensors file"):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_without_transformers_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\nfrom ecgfm.errors import ConfigError\n"
        "try:\n    import ecgfm.hub.transformers\nexcept ConfigError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install transformers" in done.stdout
