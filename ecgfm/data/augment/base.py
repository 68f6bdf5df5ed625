"""What an augmentation must offer, and how several are put together.

A signal comes and goes in normalised values, and magnitudes are in millivolt: the papers' figures hold for
recordings before they are normalised (in the code of Bo et al. 2022, https://arxiv.org/abs/2211.07889, the
scaling to 0..1 comes after the augmentations). The view carries each row's mean and standard deviation, with
which amplitudes are converted; no augmentation goes over the signal to undo the normalisation. What is hidden
is set to 0, the lead's mean in its database.

All numbers come from the view's draws and depend on (seed, step, row, number of the view, place in the list):
ranks and accumulation change nothing. Nothing waits for the device, and no shape depends on a draw.

Shapes: B windows, L leads, T samples, C labels, N augmentations.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ecgfm import parts
from ecgfm.data.batch import Draws
from ecgfm.errors import ConfigError

FOLDER = "ecgfm.data.augment"


@dataclass(frozen=True, kw_only=True)
class View:
    """What an augmentation may know and draw: one of the views of a micro-batch."""

    draws: Draws
    """The step's random numbers."""
    rate_hz: float
    """Samples a second."""
    mean_mv_BL: Tensor
    """What was subtracted from each lead of a row; 0 for a signal in millivolt."""
    std_mv_BL: Tensor
    """What each lead was divided by; 1 for a signal in millivolt."""
    number: int = 0
    """Which view of the same windows: each has its own numbers."""
    place: str = ""
    """Which augmentation draws."""

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Return numbers in [0, 1), shape (B, *shape), float64."""
        return self.draws.rows(self._purpose(purpose), *shape)

    def between(self, purpose: str, bounds: tuple[float, float], *shape: int) -> Tensor:
        """Return uniform numbers between two bounds, shape (B, *shape), float64."""
        return bounds[0] + (bounds[1] - bounds[0]) * self.uniform(purpose, *shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Return standard normal numbers, shape (B, *shape), float64: the quantiles of uniform ones, to 1e-15."""
        # 0 is drawn once in 2**53 times, and its quantile is minus infinity.
        normal: Tensor = torch.special.ndtri(self.uniform(purpose, *shape).clamp(min=2.0**-54))
        return normal

    def many(self, purpose: str, *shape: int) -> Tensor:
        """Return a signal's worth of uniform numbers, shape (B, *shape), float32."""
        return self.draws.many(self._purpose(purpose), *shape)

    def many_normal(self, purpose: str, *shape: int) -> Tensor:
        """Return a signal's worth of standard normal numbers, shape (B, *shape), float32."""
        return self.draws.normal(self._purpose(purpose), *shape)

    def _purpose(self, purpose: str) -> str:
        return f"view {self.number} {self.place} {purpose}"


class Augmentation(nn.Module, abc.ABC):
    """Changes some rows of a batch at random. It has no weights and no state."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of an augmentation; each nests its own."""

        p: float = 1.0
        """Share of the rows that are changed, drawn for each row and view."""

        def __post_init__(self) -> None:
            if not 0.0 <= self.p <= 1.0:
                raise ConfigError(f"{parts.kind_of(type(self))}: p must lie in 0..1, got {self.p}")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def check(cls, config: Config, num_leads: int, samples: int, rate_hz: float) -> None:
        """Refuse signals that this cannot change, before anything is built.

        Raises:
            ConfigError: Why.
        """
        return

    def rows(self, view: View) -> Tensor | None:
        """Return which rows are changed, bool of shape (B,), or None when all are."""
        return view.uniform("rows") < self.config.p if self.config.p < 1.0 else None

    def forward(self, signal_BLT: Tensor, view: View, rows_B: Tensor | None = None) -> Tensor:
        """Return the batch with some rows changed, in the signal's own type; computed in float32.

        Args:
            signal_BLT: Normalised signal, floating point.
            view: Which view this is.
            rows_B: Rows that may be changed; all by default. Those that are, are drawn among them.
        """
        if self.config.p == 0.0:
            return signal_BLT
        changed_B = both(rows_B, self.rows(view))
        # Under bfloat16 autocast the sums below would round the whole signal.
        with torch.autocast(signal_BLT.device.type, enabled=False):
            changed_BLT = self.change(signal_BLT.float(), view).to(signal_BLT.dtype)
        if changed_B is None:
            return changed_BLT
        return torch.where(changed_B[:, None, None], changed_BLT, signal_BLT)

    @abc.abstractmethod
    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return every row changed, as a new float32 tensor of the same shape."""

    def follow(self, labels_BC: Tensor, view: View, rows_B: Tensor | None = None) -> Tensor:
        """Return the labels that fit the changed signal; only mixtures of rows change them."""
        return labels_BC

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Tables go to another device, but not to another type when the weights beside them do.
        super()._apply(lambda table: table.to(fn(table).device), recurse)  # type: ignore[no-untyped-call]
        return self


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Which augmentations make a view, in their order."""

    transforms: tuple[Augmentation.Config, ...] = ()
    """Applied one after the other. Their settings are changed by number: --...transforms.0.p 0.5."""
    use: tuple[str, ...] | None = None
    """Names of those to apply, in this order, in place of the whole list; a name that the list lacks gets its
    default settings."""
    pick: int | None = None
    """Apply so many of them, picked at random for each row and view; all by default."""

    def __post_init__(self) -> None:
        chosen = self.chosen()
        if self.pick is not None and not 1 <= self.pick <= len(chosen):
            raise ConfigError(f"cannot pick {self.pick} of {len(chosen)} augmentations: pick must lie between")

    def chosen(self) -> tuple[Augmentation.Config, ...]:
        """Return the settings of what is applied.

        Raises:
            ConfigError: There is no augmentation of a name in `use`.
        """
        if self.use is None:
            return self.transforms
        listed = {parts.kind_of(type(config)): config for config in reversed(self.transforms)}
        names = [name.replace("-", "_") for name in self.use]
        return tuple(listed[name] if name in listed else _class_of(name).Config() for name in names)

    def check(self, num_leads: int, samples: int, rate_hz: float) -> None:
        """Refuse signals that one of them cannot change, before anything is built.

        Raises:
            ConfigError: Which, and why.
        """
        for config in self.chosen():
            _class_of(parts.kind_of(type(config))).check(config, num_leads, samples, rate_hz)


class Augmenter(nn.Module):
    """Applies augmentations one after the other, each to its own rows. It has no weights and no state."""

    def __init__(self, settings: Augment) -> None:
        super().__init__()
        self.pick = settings.pick
        self.transforms = nn.ModuleList(build_augmentation(config) for config in settings.chosen())

    def forward(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return a view of the batch, in the signal's type.

        Args:
            signal_BLT: Normalised signal, floating point.
            view: Which view this is.
        """
        for transform, rows_B, here in self._steps(view):
            signal_BLT = transform(signal_BLT, here, rows_B)
        return signal_BLT

    def follow(self, labels_BC: Tensor, view: View) -> Tensor:
        """Return the labels, floating point, that fit the same view of the signal (after mixup and cutmix)."""
        for transform, rows_B, here in self._steps(view):
            labels_BC = transform.follow(labels_BC, here, rows_B)
        return labels_BC

    def names(self, view: View) -> tuple[str, ...]:
        """Return what is done to each window of a view, in words; for pictures."""
        said: list[list[str]] = [[] for _ in range(len(view.mean_mv_BL))]
        for transform, rows_B, here in self._steps(view):
            changed_B = both(rows_B, transform.rows(here))
            for row, words in enumerate(said):
                if transform.config.p > 0.0 and (changed_B is None or bool(changed_B[row])):
                    words.append(parts.kind_of(type(transform)))
        return tuple(", ".join(words) or "unchanged" for words in said)

    def _steps(self, view: View) -> Sequence[tuple[Augmentation, Tensor | None, View]]:
        """Return each augmentation with the rows that picked it and its place, from which its numbers come."""
        transforms = [transform for transform in self.transforms if isinstance(transform, Augmentation)]
        picked_BN: Tensor | None = None
        if self.pick is not None and self.pick < len(transforms):
            uniform_BN = dataclasses.replace(view, place="all").uniform("pick", len(transforms))
            picked_BN = uniform_BN.argsort(dim=1).argsort(dim=1) < self.pick
        steps = []
        for number, transform in enumerate(transforms):
            here = dataclasses.replace(view, place=f"{number} {parts.kind_of(type(transform))}")
            steps.append((transform, None if picked_BN is None else picked_BN[:, number], here))
        return steps


def build_augmentation(config: Augmentation.Config) -> Augmentation:
    """Return the augmentation that `config` belongs to."""
    return _class_of(parts.kind_of(type(config)))(config)


def check_share(config: Augmentation.Config, name: str) -> None:
    """Refuse a setting, a number or bounds of one, outside of 0..1.

    Raises:
        ConfigError: With the part's name, the setting's and its value.
    """
    _bounds(config, name, 0.0, 1.0, "needs values in 0..1, ascending")


def check_positive(config: Augmentation.Config, name: str) -> None:
    """Refuse a setting, a number or bounds of one, that is negative or not finite; see `check_share`."""
    _bounds(config, name, 0.0, math.inf, "needs finite values of 0 or more, ascending")


def _bounds(config: Augmentation.Config, name: str, low: float, high: float, needs: str) -> None:
    value = getattr(config, name)
    values = value if isinstance(value, tuple) else (value,)
    if not all(low <= one <= high and one < math.inf for one in values) or list(values) != sorted(values):
        raise ConfigError(f"{parts.kind_of(type(config))}: {name} {needs}, got {value}")


def _class_of(name: str) -> type[Augmentation]:
    return parts.load(FOLDER, name, Augmentation)  # type: ignore[type-abstract]


def both(first_B: Tensor | None, second_B: Tensor | None) -> Tensor | None:
    """Return the rows in both, where None stands for all."""
    if first_B is None or second_B is None:
        return second_B if first_B is None else first_B
    return first_B & second_B
