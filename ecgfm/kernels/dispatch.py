"""Whether a kernel of Triton runs, or its reference in plain torch.

The references are what runs on a CPU, on the meta device, and where Triton is not installed. The files of the kernels
are imported when they first run: to import Triton takes as long as all else that an encoder needs.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from torch import Tensor

Kernels = Literal["auto", "reference"]

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_chosen: Kernels = "auto"


def choose(kernels: Kernels) -> None:
    """Set what runs from now on in this process.

    Args:
        kernels: Triton's where it can (auto), or the references everywhere.
    """
    global _chosen
    _chosen = kernels


def triton_runs(*tensors: Tensor | None) -> bool:
    """Tell whether Triton's kernel is the one to run on these tensors; None is none."""
    if _chosen == "reference" or not _HAS_TRITON:
        return False
    return all(tensor is None or tensor.is_cuda for tensor in tensors)
