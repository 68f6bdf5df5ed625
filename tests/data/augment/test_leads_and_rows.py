"""What mixes leads or rows: the vectorcardiogram, permutations, mixup and cutmix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import beta
from torch import Tensor

from ecgfm.data.augment._mixing import Mixing
from ecgfm.data.augment.base import View, build_augmentation
from ecgfm.data.augment.cutmix import Cutmix
from ecgfm.data.augment.lead_permutation import LeadPermutation
from ecgfm.data.augment.mixup import Mixup
from ecgfm.data.augment.three_kg import ThreeKG
from ecgfm.errors import ConfigError

Look = Callable[..., View]
# Dower 1968 as printed, rows V1 to V6, I, II.
DOWER = np.array(
    [
        *([-0.515, 0.157, -0.917], [0.044, 0.164, -1.387], [0.882, 0.098, -1.277], [1.213, 0.127, -0.601]),
        *([1.125, 0.127, -0.086], [0.831, 0.076, 0.230], [0.632, -0.235, 0.059], [0.235, 1.066, -0.132]),
    ]
)
# Edenbrandt and Pahlm 1988 as printed, columns V1 to V6, I, II; Z to the front.
INVERSE = np.array(
    [
        [-0.172, -0.074, 0.122, 0.231, 0.239, 0.194, 0.156, -0.010],
        [0.057, -0.019, -0.106, -0.022, 0.041, 0.048, -0.227, 0.887],
        [0.229, 0.310, 0.246, 0.063, -0.055, -0.108, -0.022, -0.102],
    ]
)
IN_DOWERS_ORDER = [6, 7, 8, 9, 10, 11, 0, 1]
# Signals of size 5 in float32, through matrices of size 5.
TOLERANCE = 3e-5


def millivolt(signal: Tensor, view: View) -> NDArray[np.float64]:
    std, mean = (factor.double().numpy()[:, :, None] for factor in (view.std_mv_BL, view.mean_mv_BL))
    values: NDArray[np.float64] = signal.double().numpy() * std + mean
    return values


def twelve(eight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard leads of V1 to V6, I, II."""
    chest, one, two = eight[:6], eight[6], eight[7]
    limbs = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])
    return np.concatenate([limbs, chest])


def test_three_kg_turns_and_scales_the_vector_of_the_signal_in_millivolt(beats: Tensor, look: Look) -> None:
    view = look()
    changed = millivolt(build_augmentation(ThreeKG.Config())(beats, view), view)
    angle = -45 + 90 * view.uniform("angles", 3).numpy()
    scale = 1 + 0.5 * view.uniform("scales", 3).numpy()
    before = millivolt(beats, view)
    for row in range(len(beats)):
        vector = np.linalg.lstsq(DOWER, before[row][IN_DOWERS_ORDER], rcond=None)[0]
        turned = Rotation.from_euler("zyx", angle[row], degrees=True).as_matrix() @ vector
        np.testing.assert_allclose(changed[row], twelve(DOWER @ (scale[row][:, None] * turned)), rtol=0, atol=TOLERANCE)


def test_three_kg_is_near_what_the_published_inverse_gives(beats: Tensor, look: Look) -> None:
    view = look()
    still = ThreeKG.Config(angle_deg=0.0, scale=(1.0, 1.0))
    changed = millivolt(build_augmentation(still)(beats, view), view)
    before = millivolt(beats, view)
    for row in range(len(beats)):
        vector = INVERSE @ before[row][IN_DOWERS_ORDER] * np.array([[1.0], [1.0], [-1.0]])
        # Three digits of eight coefficients, times up to 2 mV.
        np.testing.assert_allclose(changed[row], twelve(DOWER @ vector), rtol=0, atol=1.5e-2)


def test_three_kg_without_angle_and_scale_projects_onto_what_a_dipole_shows(beats: Tensor, look: Look) -> None:
    view = look()
    still = build_augmentation(ThreeKG.Config(angle_deg=0.0, scale=(1.0, 1.0)))
    once = still(beats, view)
    torch.testing.assert_close(still(once, view), once, rtol=0, atol=TOLERANCE)
    lost = (millivolt(beats, view) - millivolt(once, view))[:, IN_DOWERS_ORDER]
    assert np.abs(lost).max() > 0.01
    # What is lost is orthogonal to every column of Dower's matrix.
    assert np.abs(np.einsum("ld,blt->bdt", DOWER, lost)).max() < 2e-5
    # And a signal that is a dipole's comes back whole.
    vector = np.random.default_rng(0).normal(0, 1, (3, 1000))
    dipole_mv = torch.from_numpy(np.stack([twelve(DOWER @ vector)] * 8))
    normalised = ((dipole_mv - view.mean_mv_BL[:, :, None]) / view.std_mv_BL[:, :, None]).float()
    torch.testing.assert_close(still(normalised, view), normalised, rtol=0, atol=2e-4)


def test_three_kg_keeps_the_limb_leads_relations(beats: Tensor, look: Look) -> None:
    view = look()
    one, two, three, avr, avl, avf = millivolt(build_augmentation(ThreeKG.Config())(beats, view), view)[:, :6].swapaxes(
        0, 1
    )
    np.testing.assert_allclose(three, two - one, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(avr + avl + avf, 0 * one, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(avl, one - two / 2, rtol=0, atol=TOLERANCE)


def test_three_kg_refuses_other_than_twelve_leads() -> None:
    with pytest.raises(ConfigError, match="three_kg needs the 12 standard leads in their order, got 8"):
        ThreeKG.check(ThreeKG.Config(), 8, 1000, 500.0)


def test_a_permutation_moves_whole_leads_in_millivolt(beats: Tensor, look: Look) -> None:
    view = look()
    before = millivolt(beats, view)
    after = millivolt(build_augmentation(LeadPermutation.Config())(beats, view), view)
    orders = set()
    for row in range(len(beats)):
        order = np.argsort(view.uniform("order", 12).numpy()[row])
        assert sorted(order.tolist()) == list(range(12))
        np.testing.assert_allclose(after[row], before[row][order], rtol=0, atol=3e-6)
        orders.add(tuple(order.tolist()))
    assert len(orders) == len(beats)


def test_a_permutation_may_keep_limb_and_chest_leads_apart(beats: Tensor, look: Look) -> None:
    view = look()
    before = millivolt(beats, view)
    apart = LeadPermutation.Config(within="limb and chest")
    after = millivolt(build_augmentation(apart)(beats, view), view)
    for row in range(len(beats)):
        for group in (slice(0, 6), slice(6, 12)):
            # Sorted by the first sample, which is another in each lead.
            first, second = (values[row][group] for values in (before, after))
            np.testing.assert_allclose(
                second[np.argsort(second[:, 0])], first[np.argsort(first[:, 0])], rtol=0, atol=3e-6
            )
    with pytest.raises(ConfigError, match="needs the 12 leads, got 3"):
        LeadPermutation.check(apart, 3, 1000, 500.0)


def test_mixup_weighs_neighbours_with_beta_numbers(beats: Tensor, look: Look) -> None:
    view = look()
    mixup = build_augmentation(Mixup.Config())
    changed = mixup(beats, view).double().numpy()
    labels = mixup.follow(torch.eye(8), view).double().numpy()
    weight = beta.ppf(view.uniform("weight").numpy(), 0.2, 0.2)
    for row in range(8):
        partner = row + 1 if row % 2 == 0 else row - 1
        wanted = weight[row] * beats[row].double().numpy() + (1 - weight[row]) * beats[partner].double().numpy()
        # The table of quantiles is off by some 1e-3 of a weight where it is steep.
        np.testing.assert_allclose(changed[row], wanted, rtol=0, atol=1e-2)
        assert labels[row, row] == pytest.approx(weight[row], abs=2e-3)
        assert labels[row, partner] == pytest.approx(1 - weight[row], abs=2e-3)
        assert labels[row].sum() == pytest.approx(1)


def test_cutmix_takes_a_segment_of_the_neighbour(beats: Tensor, look: Look) -> None:
    view = look()
    cutmix = build_augmentation(Cutmix.Config())
    changed = cutmix(beats, view)
    labels = cutmix.follow(torch.eye(8), view)
    share, start = view.uniform("share"), view.uniform("start", 1)[:, 0]
    for row in range(8):
        partner = row ^ 1
        length = round(float(share[row]) * 1000)
        first = int(start[row] * (1000 - length + 1))
        wanted = beats[row].clone()
        wanted[:, first : first + length] = beats[partner][:, first : first + length]
        assert torch.equal(changed[row], wanted)
        assert float(labels[row, row]) == pytest.approx(1 - length / 1000, abs=5.1e-4)
        assert float(labels[row, partner]) == pytest.approx(length / 1000, abs=5.1e-4)


@pytest.mark.parametrize("family", [Mixup, Cutmix])
def test_labels_of_unchanged_rows_stay(family: type[Mixing], beats: Tensor, look: Look) -> None:
    mixing = build_augmentation(replace(family.Config(), p=0.5))
    rows_B = mixing.rows(look())
    assert rows_B is not None and 0 < rows_B.sum() < 8
    labels = mixing.follow(torch.eye(8), look())
    assert torch.equal((labels != torch.eye(8)).any(dim=1), rows_B)
    none = build_augmentation(replace(family.Config(), p=0.0))
    assert torch.equal(none.follow(torch.eye(8), look()), torch.eye(8))


@pytest.mark.parametrize(("first", "last"), [(0, 3), (1, 3)])
def test_rows_without_a_partner_are_refused_with_their_numbers(
    beats: Tensor, look: Look, first: int, last: int
) -> None:
    with pytest.raises(ConfigError, match=f"{last - first} rows from row {first} on leaves one alone"):
        build_augmentation(Mixup.Config())(beats[first:last], look(first, last))
