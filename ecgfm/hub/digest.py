"""Digests of weights and files: whether results belong to an encoder, and a download is what the Hub says it is.

The client compares sizes alone. But its cache names each file by what the Hub says is its digest, SHA-256 of a large
file and git's of a small one, and that can be held against the content, which a proxy, a mirror or a disk may have
changed.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import nn

from ecgfm.errors import ContractError

LARGE = re.compile(r"[0-9a-f]{64}")
SMALL = re.compile(r"[0-9a-f]{40}")


def check_digest(path: Path, where: str) -> None:
    """Compare a file of the client's cache with the digest that it is named by.

    Where the cache has no symbolic links (some Windows) the digest is not kept, and nothing is compared.

    Args:
        path: As hf_hub_download gave it.
        where: The repository, for the message.

    Raises:
        ContractError: The content is another.
    """
    said = path.resolve().name
    if LARGE.fullmatch(said):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    elif SMALL.fullmatch(said):
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return
    if found != said:
        raise ContractError(
            f"{path.name} of {where} is not what the Hub says it is: its digest is {found[:12]}, not {said[:12]}; "
            "something on the way or the disk changed it: load it again with force_download=True"
        )


def weights_sha256(module: nn.Module) -> str:
    """Return a hash of all weights and buffers, the same on every machine."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + raw)
    return digest.hexdigest()
