"""Rows of two ranks, and their gradients.

`python test_gather.py RANK FOLDER` is one of the ranks.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecgfm.nn.gather import gather_rows
from tests.two_ranks import one_of_two, run_two_ranks

ROWS = 3
"""Of each rank."""


def whole() -> tuple[Tensor, Tensor]:
    """Return rows of both ranks, and what a loss compares each with."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * ROWS, 4, generator=generator), torch.randn(2 * ROWS, 2 * ROWS, generator=generator)


def loss_of(own: Tensor, everybody: Tensor, weight: Tensor) -> Tensor:
    """Return a mean over own rows, each with everybody's: not linear, so that a gradient depends on all of them."""
    return ((own @ everybody.T).tanh() * weight).sum() / len(own)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Return what each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(__file__, folder)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def test_every_rank_has_all_rows_in_the_ranks_order(ranks: list[dict[str, Tensor]]) -> None:
    values, _ = whole()
    for rank, found in enumerate(ranks):
        assert torch.equal(found["rows"], values)
        assert found["first"].item() == rank * ROWS
        assert torch.equal(found["deep"], values[:, :, None].expand(-1, -1, 2))
        assert found["meta"].tolist() == [2 * ROWS, 4, rank * ROWS]


def test_the_mean_over_ranks_is_the_gradient_of_one_rank_with_all_rows(ranks: list[dict[str, Tensor]]) -> None:
    values, weight = whole()
    values = values.double().requires_grad_()
    torch.autograd.backward(loss_of(values, values, weight.double()))
    assert values.grad is not None
    found = torch.cat([rank["gradient"] for rank in ranks]) / 2  # an engine averages
    torch.testing.assert_close(found.double(), values.grad, atol=1e-6, rtol=1e-5)


def test_alone_nothing_is_done() -> None:
    values, _ = whole()
    rows, first = gather_rows(values)
    assert rows is values and first == 0


if __name__ == "__main__":
    with one_of_two() as (own, folder):
        values, weight = whole()
        mine = slice(own * ROWS, (own + 1) * ROWS)
        leaf = values[mine].clone().requires_grad_()
        rows, first = gather_rows(leaf)
        torch.autograd.backward(loss_of(leaf, rows, weight[mine]))
        assert leaf.grad is not None
        deep, _ = gather_rows(values[mine][:, :, None].expand(-1, -1, 2))
        meta, meta_first = gather_rows(values[mine].to("meta"))
        save_file(
            {
                "rows": rows.detach(),
                "first": torch.tensor(first),
                "gradient": leaf.grad,
                "deep": deep.contiguous(),
                "meta": torch.tensor([*meta.shape, meta_first]),
            },
            folder / f"{own}.safetensors",
        )
