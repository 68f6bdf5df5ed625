"""A process that talks to the Hub of its environment as users do, one request a line; see `test_hub.py`.

Each line is JSON, `{"do": "load" or "push", ...}`; the answer is a line of JSON: what came of it, or the error and its
words. Whatever is printed besides goes to stderr, which the test keeps.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgfm.errors import EcgfmError
from ecgfm.hub import reference
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.hub.publish import prepare, push


def load(where: str, **options: Any) -> dict[str, str | None]:
    """Load an encoder, and say what it is."""
    model = ECGEncoder.from_pretrained(where, **options)
    features = model.embed(reference.recordings_RLT(), **reference.HOW)
    return {"features": hashlib.sha256(features.numpy().tobytes()).hexdigest(), "revision": model.revision}


def upload(folder: str, repo_id: str, **options: Any) -> dict[str, str]:
    """Prepare a folder and upload it."""
    with tempfile.TemporaryDirectory() as ready:
        prepare(Path(folder), Path(ready), repo_id, licence=options.pop("licence", None))
        return {"revision": push(Path(ready), repo_id, **options)[0]}


def main() -> None:
    """Answer until there is no more to read."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if token := request.pop("token"):
            os.environ["HF_TOKEN"] = token
        do = load if request.pop("do") == "load" else upload
        try:
            answer: Mapping[str, str | None] = do(**request)
        except EcgfmError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
