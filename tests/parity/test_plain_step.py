"""The whole step, from counts to the moving average, against the plain one of tools/bench_step.py."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from ecgfm.encoders.vit import ViT

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_losses_of_ten_steps_are_those_of_the_plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    bench = importlib.import_module("bench_step")
    monkeypatch.setitem(bench.SIZES, "xs", ViT.Config(width=32, depth=2, num_heads=2))
    device = torch.device("cpu")
    exact, rounded = bench.same_losses(bench.Bench(steps=10), device, bench.counts(4, device))
    # Adding in another order: some 1e-7 in each step.
    assert 0.0 <= exact.ratio < 1e-6, exact
    # In 16 bits, within what another draw of the masks changes.
    assert 0.0 <= rounded.ratio < 1, rounded
