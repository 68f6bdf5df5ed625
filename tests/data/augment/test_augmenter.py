"""Several augmentations together: order, picks, names on the command line, labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from ecgfm import config, parts
from ecgfm.data.augment.base import Augment, Augmentation, Augmenter, View, build_augmentation
from ecgfm.data.augment.block_mask import BlockMask
from ecgfm.data.augment.cutmix import Cutmix
from ecgfm.data.augment.gaussian_noise import GaussianNoise
from ecgfm.data.augment.lead_mask import LeadMask
from ecgfm.data.augment.mixup import Mixup
from ecgfm.data.augment.three_kg import ThreeKG
from ecgfm.data.augment.time_mask import TimeMask
from ecgfm.errors import ConfigError

Look = Callable[..., View]
LISTED = Augment(transforms=(ThreeKG.Config(p=0.5), GaussianNoise.Config(sd_mv=0.1), LeadMask.Config()))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an objective might have."""

    augment: Augment = LISTED
    """Makes the views."""


def cli(*words: str) -> Augment:
    return config.cli(Settings(), args=words).augment


def test_transforms_are_applied_in_their_order_each_with_its_own_numbers(beats: Tensor, look: Look) -> None:
    both = Augmenter(Augment(transforms=(GaussianNoise.Config(), TimeMask.Config(p=0.5), GaussianNoise.Config())))
    wanted = beats
    for number, settings in enumerate((GaussianNoise.Config(), TimeMask.Config(p=0.5), GaussianNoise.Config())):
        here = replace(look(), place=f"{number} {parts.kind_of(type(settings))}")
        wanted = build_augmentation(settings)(wanted, here)
    assert torch.equal(both(beats, look()), wanted)
    first, second = (GaussianNoise.Config() for _ in range(2))
    once = Augmenter(Augment(transforms=(first,)))(beats, look())
    twice = Augmenter(Augment(transforms=(first, second)))(beats, look())
    assert not torch.allclose(twice - once, once - beats, atol=1e-3)


def test_so_many_are_picked_for_each_row(beats: Tensor, look: Look) -> None:
    # Shares that tell who was there: each multiplies the ones by hiding its own share.
    chosen: Counter[tuple[bool, ...]] = Counter()
    transforms = (GaussianNoise.Config(), BlockMask.Config(), ThreeKG.Config(), LeadMask.Config())
    augmenter = Augmenter(Augment(transforms=transforms, pick=2))
    for step in range(100):
        steps = augmenter._steps(look(step=step))
        rows = torch.stack([rows_B for _, rows_B, _ in steps if rows_B is not None])
        assert rows.shape == (4, 8)
        chosen.update(tuple(row) for row in rows.T.tolist())
    assert all(sum(pick) == 2 for pick in chosen) and len(chosen) == 6
    # 800 rows over 6 pairs: 133 each, with a standard deviation of 10.5.
    assert all(abs(count - 800 / 6) < 50 for count in chosen.values())


def test_rows_that_did_not_pick_a_transform_are_left_alone(beats: Tensor, look: Look) -> None:
    augmenter = Augmenter(Augment(transforms=(GaussianNoise.Config(), LeadMask.Config(p=0.0)), pick=1))
    (_, rows_B, _), _ = augmenter._steps(look())
    assert rows_B is not None and 0 < rows_B.sum() < 8
    changed = augmenter(beats, look())
    assert torch.equal((changed != beats).flatten(1).any(dim=1), rows_B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_families_together_are_the_same_on_one_rank_and_on_two(
    beats: Tensor, look: Look, dtype: torch.dtype
) -> None:
    augmenter = Augmenter(Augment(use=parts.names("ecgfm.data.augment"), pick=9))
    signal = beats.to(dtype)
    whole = augmenter(signal, look())
    assert whole.dtype == dtype and whole.isfinite().all()
    halves = [augmenter(signal[at : at + 4], look(at, at + 4)) for at in (0, 4)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(augmenter(signal, look(number=1)), whole)


def test_labels_follow_the_mixtures_in_the_signals_order(look: Look) -> None:
    augmenter = Augmenter(Augment(transforms=(Mixup.Config(alpha=1.0), LeadMask.Config(), Cutmix.Config()), pick=2))
    # Cutmix of constants: the mean over time is mixed in the segment's share. Without hidden leads, labels are means.
    labels = torch.eye(8)
    signal = labels[:, :, None].expand(-1, -1, 100_000)
    view = look(leads=8)
    steps = augmenter._steps(view)
    mixed = signal
    for transform, rows_B, here in steps:
        if not isinstance(transform, build_augmentation(LeadMask.Config()).__class__):
            mixed = transform(mixed, here, rows_B)
    torch.testing.assert_close(augmenter.follow(labels, view), mixed.mean(dim=2), atol=2e-5, rtol=0)


def test_an_empty_list_gives_the_signal_itself(beats: Tensor, look: Look) -> None:
    assert Augmenter(Augment())(beats, look()) is beats


def test_the_whole_is_written_as_json_with_kinds_and_read_back() -> None:
    settings = Settings(augment=replace(LISTED, pick=2))
    written = json.loads(json.dumps(config.to_dict(settings)))
    assert [part["kind"] for part in written["augment"]["transforms"]] == ["three_kg", "gaussian_noise", "lead_mask"]
    assert config.from_dict(Settings, written) == settings
    with pytest.raises(ConfigError, match="did you mean gaussian_noise"):
        written["augment"]["transforms"][1]["kind"] = "gausian_noise"
        config.from_dict(Settings, written)


def test_the_command_line_changes_magnitudes_by_number_and_the_list_by_name() -> None:
    assert cli() == LISTED
    changed = cli("--augment.transforms.0.angle-deg", "30", "--augment.transforms.1.p", "0.2", "--augment.pick", "2")
    assert changed.pick == 2
    assert changed.transforms == (
        ThreeKG.Config(p=0.5, angle_deg=30.0),
        GaussianNoise.Config(p=0.2, sd_mv=0.1),
        LeadMask.Config(),
    )
    named = cli("--augment.use", "block-mask", "gaussian_noise")
    assert named.chosen() == (BlockMask.Config(), GaussianNoise.Config(sd_mv=0.1))
    assert [type(transform).__name__ for transform in Augmenter(named).transforms] == ["BlockMask", "GaussianNoise"]


def test_names_and_picks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="'pink_noise' is not in ecgfm/data/augment"):
        Augment(use=("pink_noise",))
    with pytest.raises(ConfigError, match="cannot pick 4 of 3 augmentations"):
        replace(LISTED, pick=4)
    with pytest.raises(ConfigError, match="cannot pick 0 of 3"):
        replace(LISTED, pick=0)


def test_what_one_transform_cannot_change_is_refused_when_the_run_is_built() -> None:
    LISTED.check(12, 1000, 500.0)
    with pytest.raises(ConfigError, match="three_kg needs the 12"):
        LISTED.check(8, 1000, 500.0)
    replace(LISTED, use=("gaussian_noise",)).check(8, 1000, 500.0)
    with pytest.raises(ConfigError, match="powerline"):
        Augment(use=("powerline",)).check(12, 1000, 100.0)


def test_an_augmenter_follows_its_module_to_another_type_and_back_without_weights() -> None:
    augmenter = Augmenter(Augment(use=parts.names("ecgfm.data.augment")))
    assert not augmenter.state_dict() and not list(augmenter.parameters())
    assert all(isinstance(transform, Augmentation) for transform in augmenter.transforms)
