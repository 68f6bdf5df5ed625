"""Settings: frozen dataclasses, written as JSON with their kind, read back strictly, and the command line.

A swappable part's settings are the nested `Config` of a class in a part's folder. They are written with
the part's name, `{"kind": "vit", ...}`, and read back through the folder. Unknown, missing or ill-typed
entries are refused by name. Nothing derived is ever written.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from ecgfm import parts
from ecgfm.errors import ConfigError, EcgfmError

T = TypeVar("T")


def to_dict(settings: Any) -> Any:
    """Return dataclasses, tuples and paths as what JSON can hold; parts carry their `kind`."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        fields = {field.name: to_dict(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        return {"kind": parts.kind_of(type(settings)), **fields} if _is_part(type(settings)) else fields
    if isinstance(settings, Mapping):
        return {str(key): to_dict(value) for key, value in settings.items()}
    if isinstance(settings, tuple | list):
        # The index of a shard is written like this, thousands of numbers and words at a time.
        if all(type(value) in (str, int, float) for value in settings):
            return list(settings)
        return [to_dict(value) for value in settings]
    if isinstance(settings, Path):
        return str(settings)
    assert settings is None or isinstance(settings, bool | int | float | str), type(settings)
    return settings


def from_dict(kind: type[T], data: Any, where: str = "") -> T:
    """Return the `kind` that `to_dict` wrote as `data`.

    Raises:
        ConfigError: An entry is unknown, missing or of another type; the message says which.
    """
    result: T = _read(kind, data, where)
    return result


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change when any entry of a `to_dict` result does."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the entries, by dotted name, in which two `to_dict` results differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            found |= differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
        return found
    return {} if old == new else {where: (old, new)}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ConfigError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def cli(default: T, *, presets: Mapping[str, T] | None = None, args: Sequence[str] | None = None) -> T:
    """Return `default` with what the command line changes.

    `--from run.json` starts from a file instead, `--preset NAME` from one of `presets`. The
    `--local_rank=N` that the deepspeed launcher adds is dropped, and nothing else is.
    """
    import tyro

    words = [word for word in (sys.argv[1:] if args is None else args) if not word.startswith("--local_rank=")]
    source, words = _take(words, "--from")
    preset, words = _take(words, "--preset")
    if source and preset:
        raise ConfigError("--from and --preset both say where to start; give one of them")
    if preset:
        if preset not in (presets or {}):
            raise ConfigError(f"--preset {preset}: there are {', '.join(presets or {}) or 'none'}")
        default = (presets or {})[preset]
    if source:
        default = from_dict(type(default), read_json(Path(source)), "run")
    epilog = "Also: --from run.json repeats a run."
    if presets:
        epilog += f" --preset {{{','.join(presets)}}} starts from other defaults."
    description = f"{sys.modules['__main__'].__doc__ or type(default).__doc__}\n\n{epilog}"
    # With several ranks one of them speaks.
    speaks = os.environ.get("RANK", "0") == "0"
    return tyro.cli(type(default), default=default, args=words, description=description, console_outputs=speaks)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command line: a user's error ends it with its message and status 1, Ctrl-C with 130."""
    rank = os.environ.get("RANK", "0")
    try:
        main()
    except EcgfmError as error:
        # All ranks find the same fault in the settings; other faults may be one rank's own.
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
        elif not isinstance(error, ConfigError):
            print(f"error on rank {rank}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _take(words: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Return the value of `--flag VALUE` or `--flag=VALUE`, and the other words."""
    for index, word in enumerate(words):
        if word == flag:
            if index + 1 == len(words):
                raise ConfigError(f"{flag} needs a value")
            return words[index + 1], words[:index] + words[index + 2 :]
        if word.startswith(flag + "="):
            return word[len(flag) + 1 :], words[:index] + words[index + 1 :]
    return None, words


def _is_part(kind: type) -> bool:
    """Tell whether a dataclass is the nested Config of a part."""
    return kind.__qualname__.endswith(".Config")


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin is Literal:
        if not any(type(data) is type(option) and data == option for option in inner):
            raise ConfigError(f"{where}: {data!r} is none of {', '.join(map(repr, inner))}")
        return data
    if origin in (typing.Union, types.UnionType):
        return _read_union(inner, data, where)
    if origin is tuple:
        return _read_tuple(inner, data, where)
    if origin is list:
        return list(_read_tuple((inner[0], ...), data, where))
    if origin is dict:
        return {key: _read(inner[1], value, f"{where}.{key}") for key, value in _mapping(data, where).items()}
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), _mapping(data, where), where)
    if kind is Path and isinstance(data, str):
        return Path(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is type(None) and data is None:
        return None
    if isinstance(data, float) and not math.isfinite(data):
        raise ConfigError(f"{where}: {data!r} is not a finite number")
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ConfigError(f"{where}: {data!r} is not of type {getattr(kind, '__name__', kind)}")
    return data


def _read_union(inner: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in inner:
        return None
    errors = []
    for option in inner:
        if option is not type(None):
            try:
                return _read(option, data, where)
            except ConfigError as error:
                errors.append(str(error))
    raise ConfigError(errors[0])


def _read_tuple(inner: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise ConfigError(f"{where}: {data!r} is not a list")
    if inner[-1] is Ellipsis:
        # The index of a million samples is read like this: nothing has to be looked at but the types.
        if inner[0] in (str, int) and all(type(value) is inner[0] for value in data):
            return tuple(data)
        return tuple(_read(inner[0], value, f"{where}[{index}]") for index, value in enumerate(data))
    if len(data) != len(inner):
        raise ConfigError(f"{where}: needs {len(inner)} values, got {len(data)}")
    return tuple(_read(item, value, f"{where}[{index}]") for index, (item, value) in enumerate(zip(inner, data)))


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'settings'}: {data!r} is not an object")
    return data


def _read_dataclass(kind: type, data: Mapping[str, Any], where: str) -> Any:
    data = dict(data)
    if _is_part(kind):
        kind = _part_config(kind, data.pop("kind", None), where)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in data:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(fields)})"
            raise ConfigError(f"{where or kind.__qualname__}: unknown entry {name!r}{hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in data and required:
            raise ConfigError(f"{where or kind.__qualname__}: entry {name!r} is missing")
    below = f"{where}." if where else ""
    return kind(**{name: _read(hints[name], value, below + name) for name, value in data.items()})


def _part_config(base: type, name: Any, where: str) -> type:
    """Return the Config of the part called `name`, in the folder of `base`."""
    if not isinstance(name, str):
        raise ConfigError(f"{where}: entry 'kind' must name the part, got {name!r}")
    folder = base.__module__.rsplit(".", 1)[0]
    root = next(kind for kind in base.__mro__ if kind.__module__ == f"{folder}.base")
    owner = getattr(sys.modules[root.__module__], root.__qualname__.split(".")[0])
    config = parts.load(folder, name, owner).Config
    if not issubclass(config, base):
        raise ConfigError(f"{where}: {name!r} is not a {base.__qualname__}")
    assert isinstance(config, type)
    return config
