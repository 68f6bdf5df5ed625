"""Which batch a norm is over, on one rank and on two.

`python test_norms.py RANK RANKS FOLDER` is one of the ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecgfm.nn.norms import BatchNorm, Norm, channel_norm

SPLIT = (3, 8)
"""Rows of rank 0, and of all ranks: they need not be even."""
ROWS = (slice(0, SPLIT[0]), slice(*SPLIT))


def whole() -> tuple[Tensor, Tensor]:
    """Return values and the gradient of what comes out, of all ranks, far from mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(0)
    values = 3.0 + 2.0 * torch.randn(SPLIT[1], 4, 5, 2, generator=generator)
    return values + torch.arange(SPLIT[1]).reshape(-1, 1, 1, 1), torch.randn(values.shape, generator=generator)


def results(kind: Norm, values: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """Return what two calls in training give, and one in evaluation."""
    norm = channel_norm(kind, values.shape[1])
    with torch.no_grad():
        for weight in norm.parameters():
            weight.add_(torch.arange(4.0))
    values = values.clone().requires_grad_()
    # Twice before one backward, as an objective of two views does.
    first, second = norm(values), norm(values.flip(2))
    loss: Tensor = ((first + 2 * second) * direction).sum()
    torch.autograd.backward(loss)
    found = {"first": first, "second": second, "values": values.grad, "half": norm(values.bfloat16())}
    found |= {name: weight.grad for name, weight in norm.named_parameters()}
    found |= dict(norm.named_buffers())
    found["flat"] = channel_norm(kind, 4)(values[:, :, 0, 0])  # as a projector's features are
    return {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """Return what each of two ranks found, by the kind of norm."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", str(folder)], env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return {kind: [load_file(folder / f"{kind}-{rank}.safetensors") for rank in range(2)] for kind in get_args(Norm)}


def slow_batch_norm(values: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return algorithm 1 of the paper in float64, with the batch's mean and unbiased variance, channel by channel."""
    out, means, variances = torch.zeros_like(values), [], []
    for channel in range(values.shape[1]):
        here = values[:, channel]
        mean = here.sum() / here.numel()
        variance = ((here - mean) ** 2).sum() / here.numel()
        out[:, channel] = (here - mean) / (variance + 1e-5) ** 0.5 * weight[channel] + bias[channel]
        means.append(mean)
        variances.append(variance * here.numel() / (here.numel() - 1))
    return out, torch.stack(means), torch.stack(variances)


@pytest.mark.parametrize("kind", ["batch", "rank-batch"])
def test_one_rank_does_what_the_paper_writes(kind: Norm) -> None:
    values, direction = whole()
    found = results(kind, values, direction)
    weight, bias = 1 + torch.arange(4.0).double(), torch.arange(4.0).double()
    slow = values.double().requires_grad_()
    first, mean, variance = slow_batch_norm(slow, weight, bias)
    second, *_ = slow_batch_norm(slow.flip(2), weight, bias)
    loss: Tensor = ((first + 2 * second) * direction.double()).sum()
    torch.autograd.backward(loss)
    assert slow.grad is not None
    for name, wanted in (("first", first), ("second", second), ("values", slow.grad)):
        # Float32, of values up to ten deviations from 0.
        torch.testing.assert_close(found[name].double(), wanted, atol=1e-5, rtol=1e-5)
    # Three batches of the same mean and variance: what was there before has 0.9 ** 3 of its weight left. The third of
    # them came in bfloat16, of 8 bits.
    kept = 0.9**3
    torch.testing.assert_close(found["running_mean"].double(), (1 - kept) * mean, atol=0, rtol=1e-3)
    torch.testing.assert_close(found["running_var"].double(), kept + (1 - kept) * variance, atol=0, rtol=1e-3)


def test_two_ranks_do_what_one_does_with_all_rows(ranks: dict[str, list[dict[str, Tensor]]]) -> None:
    alone, both = results("batch", *whole()), ranks["batch"]
    for name in ("first", "second", "values", "flat"):
        for rank, rows in zip(both, ROWS, strict=True):
            torch.testing.assert_close(rank[name], alone[name][rows], atol=1e-5, rtol=1e-5)
    for name in ("weight", "bias"):
        torch.testing.assert_close(both[0][name] + both[1][name], alone[name], atol=1e-4, rtol=1e-5)
    for rank, rows in zip(both, ROWS, strict=True):
        assert rank["half"].dtype == torch.bfloat16
        # Where two float32 values differ in the last digit, bfloat16 may round to neighbours.
        torch.testing.assert_close(rank["half"], alone["half"][rows], atol=2e-2, rtol=8e-3)


def test_two_ranks_hold_the_same_running_averages(ranks: dict[str, list[dict[str, Tensor]]]) -> None:
    alone = results("batch", *whole())
    first, second = ranks["batch"]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["rank-batch", "group"])
def test_other_norms_see_the_ranks_own_rows_only(kind: Norm, ranks: dict[str, list[dict[str, Tensor]]]) -> None:
    values, direction = whole()
    for rank, rows in zip(ranks[kind], ROWS, strict=True):
        alone = results(kind, values[rows], direction[rows])
        for name, wanted in alone.items():
            torch.testing.assert_close(rank[name], wanted, atol=1e-6, rtol=1e-5)
    if kind == "rank-batch":
        assert not torch.allclose(ranks[kind][0]["running_mean"], ranks[kind][1]["running_mean"], atol=0.1)


def test_a_group_norm_sees_one_record_and_the_same_in_evaluation() -> None:
    values, _ = whole()
    norm = channel_norm("group", 4)
    together = norm(values)
    torch.testing.assert_close(together[2:3], norm(values[2:3]))
    assert torch.equal(norm.eval()(values), together)


@pytest.mark.parametrize(("width", "groups"), [(64, 32), (196, 4), (48, 16), (7, 1)])
def test_groups_divide_the_width(width: int, groups: int) -> None:
    norm = channel_norm("group", width)
    assert isinstance(norm, torch.nn.GroupNorm) and norm.num_groups == groups


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_batch_that_is_not_finite_leaves_the_running_averages(bad: float) -> None:
    values, _ = whole()
    norm = BatchNorm(4, over_ranks=True)
    norm(values)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    broken = values.clone()
    broken[0, 1] = bad
    norm(broken)
    for name in ("running_mean", "running_var"):
        now = norm.get_buffer(name)
        assert torch.equal(now[1], before[name][1]), name
        assert not torch.equal(now[0], before[name][0])


if __name__ == "__main__":
    own, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=own, world_size=world)
    for name in get_args(Norm):
        values, direction = whole()
        save_file(results(name, values[ROWS[own]], direction[ROWS[own]]), folder / f"{name}-{own}.safetensors")
    if own == 0:
        # The other rank is not there: in evaluation nothing waits for it.
        channel_norm("batch", 4).eval()(whole()[0])
        # Nor where operations are counted.
        channel_norm("batch", 4).to("meta")(whole()[0].to("meta"))
    dist.barrier()
    dist.destroy_process_group()
