"""What every augmentation of the folder must do; a new file is found and held to it by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ecgfm import config, parts
from ecgfm.data.augment.base import Augmentation, View, build_augmentation
from ecgfm.data.augment.mixup import Mixup
from ecgfm.errors import ConfigError

Look = Callable[..., View]
NAMES = parts.names("ecgfm.data.augment")
# What makes the host wait for a device: a value or a shape that depends on numbers there.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique2", "_unique2"}


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the name and run the operation."""
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=NAMES)
def settings(request: pytest.FixtureRequest) -> Augmentation.Config:
    """Return the default settings of each augmentation."""
    return parts.load("ecgfm.data.augment", request.param, Augmentation).Config()  # type: ignore[type-abstract]


def test_the_families_of_the_papers_are_there() -> None:
    assert set(NAMES) >= {
        *("baseline_shift", "baseline_wander", "block_mask", "cutmix", "emg_noise", "gaussian_noise"),
        *("gaussian_smoothing", "lead_mask", "lead_permutation", "mixup", "peak_mask", "powerline"),
        *("random_erasing", "resizing", "stft_mask", "three_kg", "time_mask"),
    }


def test_settings_survive_the_way_to_json_and_back(settings: Augmentation.Config) -> None:
    written = json.loads(json.dumps(config.to_dict(settings)))
    assert written["kind"] == parts.kind_of(type(settings))
    assert config.from_dict(Augmentation.Config, written) == settings


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_share_of_rows_outside_of_0_to_1_is_refused_by_name(settings: Augmentation.Config, p: float) -> None:
    with pytest.raises(ConfigError, match=f"{parts.kind_of(type(settings))}: p must lie in"):
        replace(settings, p=p)


def test_every_row_is_changed_and_the_input_is_left_alone(
    settings: Augmentation.Config, beats: Tensor, look: Look
) -> None:
    before = beats.clone()
    # At alpha .2, one own weight in fifty is 1 in float32.
    augmentation = build_augmentation(replace(settings, alpha=1.0) if isinstance(settings, Mixup.Config) else settings)
    changed = augmentation(beats, look())
    assert torch.equal(beats, before)
    assert changed.shape == beats.shape and changed.dtype == torch.float32 and changed.isfinite().all()
    assert (changed != beats).flatten(1).any(dim=1).all()
    assert torch.equal(augmentation(beats, look()), changed)
    assert not list(augmentation.parameters()) and not augmentation.state_dict()


def test_steps_and_views_have_numbers_of_their_own(settings: Augmentation.Config, beats: Tensor, look: Look) -> None:
    augmentation = build_augmentation(settings)
    views = [augmentation(beats, look(step=step, number=number)) for step in (0, 1) for number in (0, 1)]
    for one in range(4):
        for other in range(one):
            assert not torch.equal(views[one], views[other])


def test_a_share_of_0_returns_the_signal_itself(settings: Augmentation.Config, beats: Tensor, look: Look) -> None:
    assert build_augmentation(replace(settings, p=0.0))(beats, look()) is beats


def test_a_share_of_rows_is_changed_as_all_would_be_and_the_others_are_not(
    settings: Augmentation.Config, beats: Tensor, look: Look
) -> None:
    everything = build_augmentation(settings)(beats, look())
    augmentation = build_augmentation(replace(settings, p=0.5))
    rows_B = augmentation.rows(look())
    assert rows_B is not None and 0 < rows_B.sum() < len(beats)
    assert torch.equal(augmentation(beats, look()), torch.where(rows_B[:, None, None], everything, beats))
    allowed_B = torch.arange(len(beats)) < 4
    narrowed = augmentation(beats, look(), allowed_B)
    assert torch.equal(narrowed, torch.where((rows_B & allowed_B)[:, None, None], everything, beats))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_do_what_one_rank_does(
    settings: Augmentation.Config, beats: Tensor, look: Look, ranks: int
) -> None:
    augmentation = build_augmentation(replace(settings, p=0.7))
    size = len(beats) // ranks
    together = [augmentation(beats[at : at + size], look(at, at + size)) for at in range(0, len(beats), size)]
    assert torch.equal(torch.cat(together), augmentation(beats, look()))


def test_bfloat16_and_autocast_round_the_result_and_nothing_before(
    settings: Augmentation.Config, beats: Tensor, look: Look
) -> None:
    augmentation = build_augmentation(settings)
    coarse = beats.bfloat16()
    wanted = augmentation(coarse.float(), look())
    assert torch.equal(augmentation(coarse, look()), wanted.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmentation(coarse.float(), look()), wanted)


def test_a_cast_of_the_weights_beside_it_leaves_its_tables_exact(
    settings: Augmentation.Config, beats: Tensor, look: Look
) -> None:
    wanted = build_augmentation(settings)(beats, look())
    assert torch.equal(build_augmentation(settings).bfloat16()(beats, look()), wanted)
    assert all(table.device.type == "meta" for table in build_augmentation(settings).to("meta").buffers())


def test_a_flat_signal_stays_finite(settings: Augmentation.Config, beats: Tensor, look: Look) -> None:
    assert build_augmentation(settings)(torch.zeros_like(beats), look()).isfinite().all()


def test_gradients_pass_where_the_signal_does(settings: Augmentation.Config, beats: Tensor, look: Look) -> None:
    signal = beats.clone().requires_grad_()
    changed = build_augmentation(settings)(signal, look())
    (changed * changed.detach()).sum().backward()
    assert signal.grad is not None and signal.grad.isfinite().all() and signal.grad.flatten(1).any(dim=1).all()


def test_other_leads_are_changed_or_refused_when_the_run_is_built(
    settings: Augmentation.Config, beats: Tensor, look: Look
) -> None:
    augmentation = build_augmentation(settings)
    try:
        augmentation.check(settings, 3, beats.shape[2], 500.0)
    except ConfigError:
        with pytest.raises(ConfigError, match="12"):
            augmentation(beats[:, :3], look(leads=3))
    else:
        assert augmentation(beats[:, :3], look(leads=3)).shape == (len(beats), 3, beats.shape[2])


@pytest.mark.parametrize("samples", [999, 1003, 1250])
def test_the_length_is_kept_whatever_it_is(
    settings: Augmentation.Config, beats: Tensor, look: Look, samples: int
) -> None:
    signal = torch.cat([beats, beats], dim=2)[:, :, :samples]
    assert build_augmentation(settings)(signal, look()).shape == signal.shape


def test_the_host_never_waits_for_the_device(settings: Augmentation.Config, beats: Tensor, look: Look) -> None:
    augmentation = build_augmentation(replace(settings, p=0.5))
    with Seen() as seen:
        augmentation(beats, look())
        augmentation.follow(torch.eye(len(beats)), look())
    assert "where" in seen.names and not seen.names & WAITS
    with Seen() as seen:
        assert float(beats.max()) > 0
    assert seen.names & WAITS
