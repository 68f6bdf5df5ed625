"""What several objectives ask of their settings and of an encoder; each message has the option and its value."""

from __future__ import annotations

from ecgfm import parts
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError


def check_counts(settings: object, *names: str) -> None:
    """Refuse settings below 1; None is none.

    Raises:
        ConfigError: With the option and its value.
    """
    for name in names:
        if (value := getattr(settings, name)) is not None and value < 1:
            raise ConfigError(f"--objective.{flag(name)} must be at least 1, got {value}")


def check_widths(widths: tuple[int, ...], name: str = "projector", *, empty: bool = False) -> None:
    """Refuse widths of layers below 1.

    Args:
        widths: Features out of each layer.
        name: The setting's.
        empty: Whether there may be no layer.

    Raises:
        ConfigError: With the option and its value.
    """
    if any(width < 1 for width in widths) or not (widths or empty):
        raise ConfigError(f"--objective.{flag(name)} needs widths of at least 1, got {widths}")


def check_shares(settings: object, *names: str) -> None:
    """Refuse numbers, alone or several, outside of 0..1.

    Raises:
        ConfigError: With the option and its value.
    """
    for name in names:
        value = getattr(settings, name)
        if not all(0.0 <= one <= 1.0 for one in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"--objective.{flag(name)} needs values in 0..1, got {value}")


def check_drops_tokens(objective: str, encoder: Encoder.Config) -> None:
    """Refuse an encoder that cannot encode some of its tokens alone.

    Raises:
        ConfigError: With the names of both.
    """
    name = parts.kind_of(type(encoder))
    if not parts.load("ecgfm.encoders", name, Encoder).drops_tokens:  # type: ignore[type-abstract]
        raise ConfigError(
            f"the objective {objective} needs an encoder that can leave tokens out, and {name} cannot; use vit or "
            "vit_leadtime"
        )


def check_pool_is_mean(objective: str, encoder: Encoder.Config) -> None:
    """Refuse another pool than the mean, for a loss that does not pass through it.

    Raises:
        ConfigError: With what to do instead.
    """
    pooling = getattr(encoder, "pooling", "mean")
    if pooling != "mean":
        raise ConfigError(
            f"--encoder.pooling {pooling}: the loss of {objective} does not pass through the pool, which would stay as "
            "it began; leave it at mean, and give the published encoder another pool when its features are trained "
            "(ECGEncoder.with_pooling)"
        )


def flag(name: str) -> str:
    """Return a setting's name as the command line writes it."""
    return name.replace("_", "-")
