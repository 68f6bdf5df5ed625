"""Positions against the formula, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from ecgfm.nn.positions import HeldPositions, rotary_turns, sincos_positions


@pytest.mark.parametrize(("tokens", "width"), [(200, 192), (7, 2), (1, 8), (1000, 16)])
def test_positions_are_those_of_the_formula(tokens: int, width: int) -> None:
    wanted = [
        [
            (math.sin if feature < width // 2 else math.cos)(token / 10000 ** (feature % (width // 2) / (width // 2)))
            for feature in range(width)
        ]
        for token in range(tokens)
    ]
    got = sincos_positions(tokens, width)
    assert got.dtype == torch.float32
    # Float32 stores numbers up to 1 with an error of up to 6e-8; angles are made in float64.
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), atol=6.1e-8, rtol=0)


def test_the_first_token_is_all_sines_of_0_and_cosines_of_0() -> None:
    assert sincos_positions(3, 8)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_longer_window_keeps_the_positions_of_a_shorter() -> None:
    assert torch.equal(sincos_positions(50, 32)[:20], sincos_positions(20, 32))


def test_every_token_has_a_position_of_its_own() -> None:
    positions = sincos_positions(200, 16)
    assert (torch.cdist(positions, positions) + 10 * torch.eye(200)).min() > 0.1


def test_turns_are_the_sine_and_cosine_of_each_features_angle() -> None:
    step_BN = torch.tensor([[0, 7, 3], [19, 0, 1]])
    turn_B1NF = rotary_turns(sincos_positions(20, 6), step_BN)
    assert turn_B1NF.shape == (2, 1, 3, 12)
    for row in range(2):
        for token in range(3):
            # Features 0 and 3, 1 and 4, 2 and 5 of a head of 6 are turned together.
            angle = [int(step_BN[row, token]) / 10_000 ** (2 * (feature % 3) / 6) for feature in range(6)]
            wanted = [*map(math.sin, angle), *map(math.cos, angle)]
            assert turn_B1NF[row, 0, token].tolist() == pytest.approx(wanted, abs=6.1e-8)


def test_an_odd_width_is_our_fault() -> None:
    with pytest.raises(AssertionError):
        sincos_positions(3, 5)


def test_held_positions_are_made_again_for_a_longer_window_only() -> None:
    held = HeldPositions(16)
    short, again, longer = (held(tokens, torch.device("cpu")) for tokens in (20, 10, 50))
    assert again.data_ptr() == short.data_ptr()
    for found in (short, again, longer):
        assert torch.equal(found, sincos_positions(len(found), 16))
    assert held(50, torch.device("meta")).device.type == "meta"
