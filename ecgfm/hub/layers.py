"""The layers of an encoder from last to first, for rates that fall with depth and for unfreezing step by step.

One rule for all encoders: what stands before `blocks` (with weights that are in no module: positions, registers) is the
first group, each block is one, and what follows the blocks (a last norm, a projection) goes with the last block. An
encoder without blocks has a group for each of its parts, and an LSTM one for each of its layers.

Layer-wise rates: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.2, where gradual unfreezing too
comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import nn

from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError

_LSTM_LAYER = re.compile(r"_l(\d+)(_reverse)?$")


@dataclass(kw_only=True)
class Layers:
    """Weights that are frozen and trained together."""

    name: str
    """Of its first part, such as `blocks.7`."""
    weights: dict[str, nn.Parameter] = field(default_factory=dict)
    """By their name in the encoder."""
    modules: list[nn.Module] = field(default_factory=list)
    """Those whose norms stand still while the group is frozen."""

    def trains(self) -> bool:
        """Return whether its weights get a gradient."""
        return any(weight.requires_grad for weight in self.weights.values())


def layer_groups(encoder: Encoder, most: int | None = None) -> list[Layers]:
    """Return the groups, the last layers first; every weight is in one of them.

    Args:
        encoder: Any of the folder.
        most: Join neighbours until there are no more than so many.

    Raises:
        ConfigError: `most` is below 1.
    """
    if most is not None and most < 1:
        raise ConfigError(f"an encoder has at least one group of layers, got {most}")
    children = dict(encoder.named_children())
    before, after = Layers(name="stem"), Layers(name="last")
    before.weights.update(encoder.named_parameters(recurse=False))
    groups = [before]
    for name, child in children.items():
        if name == "blocks":
            groups += [_of(f"blocks.{number}", block) for number, block in child.named_children()]
        elif isinstance(child, nn.LSTM):
            groups += _of_lstm(name, child)
        else:
            seen = "blocks" in children and list(children).index(name) > list(children).index("blocks")
            _add_(after if seen else before, name, child)
    if after.modules:
        groups[-1].weights.update(after.weights)
        groups[-1].modules += after.modules
    groups = [group for group in groups if group.weights][::-1]
    while most is not None and len(groups) > most:
        _join_smallest_(groups)
    return groups


def _of(name: str, module: nn.Module) -> Layers:
    group = Layers(name=name)
    _add_(group, name, module)
    return group


def _add_(group: Layers, name: str, module: nn.Module) -> None:
    group.modules.append(module)
    group.weights.update({f"{name}.{inner}": weight for inner, weight in module.named_parameters()})


def _of_lstm(name: str, module: nn.LSTM) -> list[Layers]:
    groups = [Layers(name=f"{name}.{number}") for number in range(module.num_layers)]
    for inner, weight in module.named_parameters():
        found = _LSTM_LAYER.search(inner)
        assert found, f"{inner} is no weight of a layer"
        groups[int(found[1])].weights[f"{name}.{inner}"] = weight
    return groups


def _join_smallest_(groups: list[Layers]) -> None:
    """Join the two neighbours that have the fewest weights together."""
    sizes = [sum(weight.numel() for weight in group.weights.values()) for group in groups]
    first = min(range(len(groups) - 1), key=lambda place: sizes[place] + sizes[place + 1])
    later, earlier = groups[first], groups.pop(first + 1)
    later.weights.update(earlier.weights)
    later.modules += earlier.modules
