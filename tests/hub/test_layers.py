"""Groups of layers: of every encoder each weight once, in the order in which the signal passes, backwards."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from ecgfm import parts
from ecgfm.encoders.base import Encoder, build_encoder
from ecgfm.errors import ConfigError
from ecgfm.hub.layers import layer_groups

NAMES = parts.names("ecgfm.encoders")


@pytest.fixture(params=NAMES, scope="module")
def encoder(request: pytest.FixtureRequest) -> Encoder:
    settings = parts.load("ecgfm.encoders", request.param, Encoder).Config()  # type: ignore[type-abstract,call-arg]
    return build_encoder(settings).eval()


def order_of_use(encoder: Encoder) -> list[nn.Module]:
    """Return modules with weights of their own in the order in which a signal first passes them."""
    used: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: used.append(module) if module not in used else None)
        for module in encoder.modules()
        if list(module.parameters(recurse=False)) and module is not encoder
    ]
    with torch.no_grad():
        encoder(torch.zeros(1, encoder.config.num_leads, 4 * encoder.config.patch_samples))
    for hook in hooks:
        hook.remove()
    return used


@pytest.mark.parametrize("most", [None, 3])
def test_every_weight_is_in_one_group(encoder: Encoder, most: int | None) -> None:
    groups = layer_groups(encoder, most)
    names = [name for group in groups for name in group.weights]
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    weights = dict(encoder.named_parameters())
    assert all(weight is weights[name] for group in groups for name, weight in group.weights.items())
    assert 2 <= len(groups) <= (most or 100)


@pytest.mark.parametrize("most", [None, 3])
def test_groups_go_from_the_last_layer_to_the_first(encoder: Encoder, most: int | None) -> None:
    number = {
        id(weight): place
        for place, group in enumerate(layer_groups(encoder, most))
        for weight in group.weights.values()
    }
    passed = [{number[id(weight)] for weight in module.parameters(recurse=False)} for module in order_of_use(encoder)]
    assert sum(map(len, passed)) >= 3
    for before, after in itertools.pairwise(passed):
        assert min(before) >= max(after) or len(before) > 1 or len(after) > 1  # an LSTM holds several layers
    first, last = passed[0], passed[-1]
    assert max(first) == len(layer_groups(encoder, most)) - 1
    assert min(last) == 0


def test_norms_belong_to_the_group_of_their_layer(encoder: Encoder) -> None:
    of_module = {
        id(inner): group for group in layer_groups(encoder) for one in group.modules for inner in one.modules()
    }
    for name, module in encoder.named_modules():
        if hasattr(module, "running_mean"):
            weights = {f"{name}.{inner}" for inner, _ in module.named_parameters(recurse=False)}
            assert weights <= of_module[id(module)].weights.keys(), name


def test_less_than_one_group_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="at least one group"):
        layer_groups(encoder, 0)
