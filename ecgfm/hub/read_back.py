"""What a fresh process finds on the Hub; run by `publish.read_back`.

    python -m ecgfm.hub.read_back FOLDER OWNER/NAME REVISION CACHE

Loads both, runs both on the reference recordings in this one process, and prints a line of JSON: the digests of the
downloaded files, and of each output, here and there. Digests are of float32's bytes: equal means bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from ecgfm import config
from ecgfm.hub import reference
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.hub.publish import FILES, load_model


def outputs(model: ECGEncoder | ECGClassifier) -> dict[str, Tensor]:
    """Return what a model makes of the reference recordings, by name."""
    recordings_RLT = reference.recordings_RLT()
    if isinstance(model, ECGEncoder):
        return {"features": model.embed(recordings_RLT, **reference.HOW)}
    return {
        "features": model.encoder.embed(recordings_RLT, **reference.HOW),
        "logits": model.predict_logits(recordings_RLT, **reference.HOW),
    }


def main() -> None:
    """Load, run, and print."""
    folder, repo_id, revision, cache = sys.argv[1:]
    local = load_model(Path(folder))
    loaded = type(local).from_pretrained(repo_id, revision=revision, cache_dir=cache, check=True)
    here, there = outputs(local), outputs(loaded)
    found = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache, allow_patterns=list(FILES)))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found.iterdir()}
    compared = {name: [_digest(here[name]), _digest(there[name])] for name in here}
    print(json.dumps({"files": files, "outputs": compared}))


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    config.run_command(main)
