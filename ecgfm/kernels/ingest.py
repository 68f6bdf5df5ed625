"""Counts of the recorder to patches of normalised values, all of a window's or the wanted ones alone.

The step that has a float32 signal made first reads and writes each sample many times. For a value, in bytes, for the
target's full view at bfloat16 under autocast, and r the share of patches that the context encoder sees (0.2):

    scale                int16 -> float32, multiply, add, clamp: 6 + 8 + 8 + 8                              30
    target               cast for the product, lay out as patches: 6 + 4                                    10
    context              the same for all patches, of which it drops 1 - r after their product              10
    here                 target 2 + 2, context r (2 + 2)                                                    4.8

and the context encoder multiplies r of the patches instead of all. Shapes: B windows, L leads, T samples, S steps, N
patches, K wanted patches, P samples of a patch, V values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.kernels.dispatch import triton_runs


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A signal as the recorder's counts, and how they become normalised values.

    A value is (count - offset) * factor + shift, clipped: a window's own scale has an offset, its mean, and a
    database's a shift.
    """

    counts_BLT: Tensor
    """int16."""
    offset_BL: Tensor | None
    """float32; 0 without it."""
    factor_BL: Tensor
    """float32."""
    shift_BL: Tensor | None
    """float32; 0 without it."""
    clip: float
    """Largest absolute value that is let through."""

    @property
    def shape(self) -> torch.Size:
        """(B, L, T)."""
        return self.counts_BLT.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.counts_BLT.device


def values(counts: Counts) -> Tensor:
    """Return signal_BLT, normalised float32."""
    signal_BLT = counts.counts_BLT.float()
    if counts.offset_BL is not None:
        signal_BLT.sub_(counts.offset_BL[:, :, None])
    signal_BLT.mul_(counts.factor_BL[:, :, None])
    if counts.shift_BL is not None:
        signal_BLT.add_(counts.shift_BL[:, :, None])
    return signal_BLT.clamp_(-counts.clip, counts.clip)


def cut(signal_BLT: Tensor, patch_samples: int, index_BK: Tensor | None, *, leads_apart: bool) -> Tensor:
    """Return patches_BKV of a float signal; gradients pass. See `patches`."""
    patches_BLSP = signal_BLT.reshape(*signal_BLT.shape[:2], -1, patch_samples)
    patches_BNV = patches_BLSP.flatten(1, 2) if leads_apart else patches_BLSP.transpose(1, 2).flatten(2)
    if index_BK is None:
        return patches_BNV
    return patches_BNV.gather(1, index_BK[:, :, None].expand(-1, -1, patches_BNV.shape[2]))


def reference(
    counts: Counts, patch_samples: int, index_BK: Tensor | None, *, leads_apart: bool, dtype: torch.dtype
) -> Tensor:
    """Do what `patches` does, in plain torch."""
    return cut(values(counts), patch_samples, index_BK, leads_apart=leads_apart).to(dtype)


def patches(
    signal: Tensor | Counts,
    patch_samples: int,
    index_BK: Tensor | None = None,
    *,
    leads_apart: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return patches_BKV, each one lead's P samples, or all leads' P samples, lead after lead.

    Args:
        signal: signal_BLT, whose gradient passes, or counts.
        patch_samples: P, of which T is a multiple.
        index_BK: Which patches; all of them by default, and then K is N. Patches of leads apart are one lead's after
            another's. Not checked on a GPU.
        leads_apart: Whether a patch is of one lead, V = P and N = L * S, or of all, V = L * P and N = S.
        dtype: Of the patches.
    """
    if isinstance(signal, Tensor):
        return cut(signal, patch_samples, index_BK, leads_apart=leads_apart).to(dtype)
    if triton_runs(signal.counts_BLT, index_BK):
        from ecgfm.kernels._ingest_triton import ingest

        scale = (signal.offset_BL, signal.factor_BL, signal.shift_BL)
        out: Tensor = ingest(signal.counts_BLT, *scale, signal.clip, patch_samples, index_BK, leads_apart, dtype)
        return out
    return reference(signal, patch_samples, index_BK, leads_apart=leads_apart, dtype=dtype)


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return the type in which a product with this weight is done: autocast's, or the weight's."""
    # The meta device, on which operations are counted, has no autocast.
    if weight.device.type != "meta" and torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype
