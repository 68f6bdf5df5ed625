"""Operations against a formula written from the architecture, and the peaks of devices by name."""

from __future__ import annotations

import pytest
import torch

from ecgfm.encoders.vit import ViT
from ecgfm.objectives.base import build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.flops import window_flops
from ecgfm.train.hardware import GPUS, peak_tflops

ENCODER = ViT.Config(width=48, num_leads=12, patch_samples=100, depth=3, num_heads=4, num_registers=2)
# One share of hidden tokens: the formula needs no draw.
SETTINGS = JEPA.Config(mask_ratio=(0.8, 0.8), min_block=4, predictor_width=24, predictor_depth=2, predictor_heads=2)


def blocks(tokens: int, width: int, depth: int) -> int:
    """Return the operations of a forward pass through pre-norm blocks: four projections, a perceptron, attention."""
    return depth * (2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width)


def test_a_windows_operations_are_those_of_the_formula() -> None:
    with torch.device("meta"):
        objective = build_objective(SETTINGS, ENCODER, 5000, 500.0)
    width, narrow, registers, tokens, kept = 48, 24, 2, 50, 10
    patch = 2 * 12 * 100 * width
    target = tokens * patch + blocks(tokens + registers, width, 3)
    encoder = kept * patch + blocks(kept + registers, width, 3)
    predictor = 2 * kept * width * narrow + blocks(tokens, narrow, 2) + 2 * (tokens - kept) * narrow * width
    # Backward costs twice the forward: the gradient of the input and that of the weight. The signal needs none, and
    # the target has none.
    wanted = target + 3 * (encoder + predictor) - kept * patch
    assert window_flops(objective, num_leads=12, window_samples=5000, rate_hz=500.0) == wanted


def test_operations_of_random_masks_lie_between_those_of_their_bounds() -> None:
    counted = []
    for ratio in ((0.75, 0.75), (0.75, 0.85), (0.85, 0.85)):
        with torch.device("meta"):
            objective = build_objective(JEPA.Config(mask_ratio=ratio, min_block=4), ENCODER, 5000, 500.0)
        counted.append(window_flops(objective, num_leads=12, window_samples=5000, rate_hz=500.0))
    assert counted[0] > counted[1] > counted[2]
    assert counted[1] == pytest.approx((counted[0] + counted[2]) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Some new device", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_every_listed_device_is_found_by_its_own_name() -> None:
    assert all(peak_tflops(f"NVIDIA {name}") == gpu.bfloat16_tflops for name, gpu in GPUS.items())
