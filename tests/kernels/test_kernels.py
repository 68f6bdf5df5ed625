"""The kernels in Triton's interpreter and on a GPU, by cases.py; and what runs in their place on a CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ecgfm.data.batch import Batch
from ecgfm.data.prepare import Prepare
from ecgfm.encoders.base import Encoder, build_encoder
from ecgfm.encoders.vit import ViT
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.kernels import assemble, dispatch, ingest
from ecgfm.kernels.ingest import Counts

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which torch brings on Linux"
)


def run_cases(**settings: str) -> str:
    """Run cases.py in a new Python: the interpreter is chosen before Triton is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"} | settings
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / "cases.py")],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


@needs_triton
def test_the_kernels_are_float64s_in_the_interpreter() -> None:
    assert "passed" in run_cases(TRITON_INTERPRET="1")


@needs_triton
def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(HERE / "compile_kernels.py")],
        cwd=HERE.parents[1],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert len(done.stdout.split()) == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run pytest -m gpu on a machine with one")
def test_the_kernels_are_float64s_on_a_gpu() -> None:
    assert "passed" in run_cases(TRITON_INTERPRET="0")


def test_references_run_on_a_cpu_and_on_the_meta_device() -> None:
    assert not dispatch.triton_runs(torch.zeros(1), None)
    tokens, position = torch.empty(2, 3, 8, device="meta"), torch.empty(9, 8, device="meta")
    index = torch.empty(2, 3, dtype=torch.int64, device="meta")
    out = assemble.assemble(tokens, position, index, mask_D=position[0], hide_BM=index, dtype=torch.float32)
    assert out.shape == (2, 6, 8) and out.is_meta


def prepared(per_window: bool) -> tuple[torch.Tensor, Counts]:
    """Return windows as values, and as counts with their scale."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        signal_BLT=torch.randint(-3000, 3000, (3, 12, 500), generator=generator).to(torch.int16),
        microvolt_per_count_B=torch.tensor([1.0, 4.88, 0.5]),
        database_B=torch.tensor([0, 1, 0]),
    )
    statistics = torch.randn(2, 12, generator=generator) / 10, torch.rand(2, 12, generator=generator) + 0.1
    values = Prepare(*statistics, 5.0, per_window=per_window)(batch)
    assert values.counts is None and values.signal is values.signal_BLT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ecgfm.data.prepare.triton_runs", lambda *tensors: True)
        kept = Prepare(*statistics, 5.0, per_window=per_window, keep_counts=True)(batch)
    assert kept.counts is not None and kept.signal is kept.counts and kept.signal_BLT is batch.signal_BLT
    assert torch.equal(kept.std_mv_BL, values.std_mv_BL)
    return values.signal_BLT, kept.counts


@pytest.mark.parametrize("per_window", [False, True])
def test_counts_with_their_scale_are_the_values_to_the_bit(per_window: bool) -> None:
    values, counts = prepared(per_window)
    assert torch.equal(ingest.values(counts), values)


@pytest.mark.parametrize(
    "config",
    [
        ViT.Config(width=32, depth=1, num_heads=2),
        ViT.Config(width=32, depth=1, num_heads=2, positions="rotary", num_registers=0),
        LeadTimeViT.Config(width=32, depth=1, num_heads=2, separators=True, num_registers=2),
    ],
)
def test_an_encoder_makes_of_counts_what_it_makes_of_values(config: Encoder.Config) -> None:
    torch.manual_seed(0)
    encoder, (values, counts) = build_encoder(config), prepared(per_window=False)
    keep = torch.rand(3, config.tokens(500)).argsort(dim=1)[:, :7].sort(dim=1).values
    for which in (None, keep):
        of_counts, of_values = encoder(counts, which), encoder(values, which)
        # A convolution or a product: sums in another order.
        torch.testing.assert_close(of_counts, of_values, rtol=0, atol=1e-5)


def test_kept_patches_are_embedded_as_those_of_the_whole_signal() -> None:
    torch.manual_seed(0)
    encoder, (values, _) = build_encoder(ViT.Config(width=32, depth=1, num_heads=2)), prepared(per_window=False)
    encoder.blocks = type(encoder.blocks)()
    keep = torch.tensor([[0, 3, 19], [1, 2, 5], [7, 8, 18]])
    whole = encoder(values).gather(1, keep[:, :, None].expand(-1, -1, 32))
    torch.testing.assert_close(encoder(values, keep), whole, rtol=0, atol=1e-5)
