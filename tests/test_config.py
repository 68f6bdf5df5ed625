"""Settings survive the way to JSON and back, are read strictly, and are told apart."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfm import config
from ecgfm.encoders import vit
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

RUN = Run(encoder=vit.XS, objective=JEPA.Config())

SHARE = st.floats(0.01, 0.99)
POSITIVE = st.floats(1e-9, 1e9)
SMALL = st.integers(1, 100)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(Path)


@st.composite
def vits(draw: st.DrawFn) -> ViT.Config:
    heads = draw(SMALL)
    return ViT.Config(
        width=4 * heads * draw(SMALL),
        num_leads=draw(SMALL),
        patch_samples=draw(SMALL),
        depth=draw(SMALL),
        num_heads=heads,
        mlp_ratio=draw(POSITIVE),
    )


JEPAS = st.builds(
    JEPA.Config,
    mask_ratio=st.tuples(SHARE, SHARE).map(lambda pair: (min(pair), max(pair))),
    min_block=SMALL,
    momentum=st.tuples(SHARE, SHARE),
    predictor_width=st.none() | SMALL,
)
RUNS = st.builds(
    Run,
    encoder=vits(),
    objective=JEPAS,
    data=st.builds(Data, shards=st.lists(PATHS.map(str), max_size=3).map(tuple), batch_size=SMALL, clip=POSITIVE),
    optim=st.builds(Optim, lr=POSITIVE, weight_decay=st.tuples(SHARE, SHARE), clip_norm=st.none() | POSITIVE),
    engine=st.builds(
        EngineConfig,
        zero_stage=st.sampled_from([0, 1, 2]),
        precision=st.sampled_from(["bfloat16", "float32"]),
        accumulation=SMALL,
    ),
    out=PATHS,
    steps=st.none() | SMALL,
    seed=st.integers(-(2**60), 2**60),
    resume=st.booleans(),
    accept_change=st.lists(st.text(max_size=10), max_size=3).map(tuple),
)


def leaves(settings: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every entry that holds no other."""
    if isinstance(settings, dict | list) and settings:
        entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
        for key, value in entries:
            yield from leaves(value, (*where, key))
    else:
        yield where


def changed(settings: dict[str, Any], where: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return a copy in which one entry has another value."""
    result = copy.deepcopy(settings)
    inner: Any = result
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return result


@hypothesis.settings(deadline=None)
@given(RUNS)
def test_a_run_survives_the_way_to_json_and_back(run: Run) -> None:
    text = json.dumps(config.to_dict(run), allow_nan=False)
    assert config.from_dict(Run, json.loads(text)) == run


def test_parts_carry_the_name_of_their_file_and_other_settings_none() -> None:
    settings = config.to_dict(RUN)
    assert settings["encoder"]["kind"] == "vit" and settings["objective"]["kind"] == "jepa"
    assert "kind" not in settings and "kind" not in settings["optim"]


def test_an_absent_entry_with_a_default_takes_it() -> None:
    settings = {"encoder": {"kind": "vit", "width": 64, "num_heads": 4}, "objective": {"kind": "jepa"}}
    run = Run(encoder=ViT.Config(width=64, num_heads=4), objective=JEPA.Config())
    assert config.from_dict(Run, settings) == run


def test_what_the_settings_class_refuses_is_refused_when_read() -> None:
    with pytest.raises(ConfigError, match="mask-ratio needs 0 < low"):
        config.from_dict(Run, changed(config.to_dict(RUN), ("objective", "mask_ratio"), [0.9, 0.1]))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("encoder", "widht"), 64, r"run\.encoder: unknown entry 'widht'; did you mean 'width'\?"),
        (("encoder", "zzz"), 64, r"run\.encoder: unknown entry 'zzz' \(there are: .*num_heads"),
        (("sead",), 1, r"run: unknown entry 'sead'; did you mean 'seed'\?"),
        (("optim", "kind"), "adamw", r"run\.optim: unknown entry 'kind'"),
        (("encoder", "depth"), "8", r"run\.encoder\.depth: '8' is not of type int"),
        (("encoder", "depth"), 8.0, r"run\.encoder\.depth: 8\.0 is not of type int"),
        (("encoder", "depth"), True, r"run\.encoder\.depth: True is not of type int"),
        (("encoder", "depth"), None, r"run\.encoder\.depth: None is not of type int"),
        (("optim", "lr"), "1e-3", r"run\.optim\.lr: '1e-3' is not of type float"),
        (("optim", "lr"), False, r"run\.optim\.lr: False is not of type float"),
        (("optim", "clip_norm"), "none", r"run\.optim\.clip_norm: 'none' is not of type float"),
        (("resume",), 1, r"run\.resume: 1 is not of type bool"),
        (("engine", "precision"), "float8", r"run\.engine\.precision: 'float8' is none of 'bfloat16', "),
        (("engine", "zero_stage"), True, r"run\.engine\.zero_stage: True is none of 0, 1, 2, 3"),
        (("optim", "betas"), [0.9], r"run\.optim\.betas: needs 2 values, got 1"),
        (("optim", "betas"), 0.9, r"run\.optim\.betas: 0\.9 is not a list"),
        (("optim", "betas"), [0.9, "x"], r"run\.optim\.betas\[1\]: 'x' is not of type float"),
        (("data", "shards"), "out/ptb-xl", r"run\.data\.shards: 'out/ptb-xl' is not a list"),
        (("data", "shards"), ["a", 3], r"run\.data\.shards\[1\]: 3 is not of type str"),
        (("data",), [], r"run\.data: \[\] is not an object"),
        (("encoder", "kind"), "vti", r"'vti' is not in ecgfm/encoders/; did you mean vit\?"),
        (("encoder", "kind"), "jepa", r"'jepa' is not in ecgfm/encoders/ \(there are: .*vit"),
        (("encoder", "kind"), 3, r"run\.encoder: entry 'kind' must name the part, got 3"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_by_its_place_and_value(where: tuple[str, ...], value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_dict(Run, changed(config.to_dict(RUN), where, value), "run")


def test_a_missing_entry_is_refused_by_its_name() -> None:
    settings = config.to_dict(RUN)
    del settings["encoder"]
    with pytest.raises(ConfigError, match="run: entry 'encoder' is missing"):
        config.from_dict(Run, settings, "run")


def test_a_part_without_its_kind_is_refused() -> None:
    settings = config.to_dict(RUN)
    del settings["encoder"]["kind"]
    with pytest.raises(ConfigError, match=r"run\.encoder: entry 'kind' must name the part, got None"):
        config.from_dict(Run, settings, "run")


def test_settings_that_are_no_object_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"settings: \[\] is not an object"):
        config.from_dict(Run, [])


def test_a_part_is_read_where_only_its_base_is_named() -> None:
    read = config.from_dict(Encoder.Config, config.to_dict(vit.B))
    assert read == vit.B and type(read) is ViT.Config


def test_whole_numbers_are_read_as_floats_where_a_float_is_due() -> None:
    run = config.from_dict(Run, changed(config.to_dict(RUN), ("data", "window_s"), 10))
    assert type(run.data.window_s) is float


@dataclass(frozen=True, kw_only=True)
class Everything:
    """One field of each kind that the reader knows."""

    several: list[int] = field(default_factory=lambda: [1, 2])
    named: dict[str, tuple[float, ...]] = field(default_factory=lambda: {"a": (1.0, 2.5), "b": ()})
    either: int | str = "x"
    choice: Literal["one", 2] = 2
    anything: Any = None


def test_lists_mappings_unions_and_choices_come_back_as_they_were() -> None:
    whole = Everything(anything={"free": [1, None, "text"]})
    assert config.from_dict(Everything, json.loads(json.dumps(config.to_dict(whole)))) == whole
    with pytest.raises(ConfigError, match=r"named\.a\[0\]: 'x' is not of type float"):
        config.from_dict(Everything, {"named": {"a": ["x"]}})
    with pytest.raises(ConfigError, match=r"either: 1\.5 is not of type int"):
        config.from_dict(Everything, {"either": 1.5})


def test_the_fingerprint_changes_with_every_entry() -> None:
    settings = config.to_dict(RUN)
    paths = list(leaves(settings))
    assert ("optim", "betas", 1) in paths and ("data", "shards") in paths
    prints = {config.fingerprint(changed(settings, where, "another value")) for where in paths}
    assert len(prints) == len(paths)
    assert config.fingerprint(settings) not in prints


def test_the_fingerprint_does_not_depend_on_the_order_of_entries() -> None:
    settings = config.to_dict(RUN)
    shuffled = list(settings.items())
    random.Random(0).shuffle(shuffled)
    assert list(dict(shuffled)) != list(settings)
    assert config.fingerprint(dict(shuffled)) == config.fingerprint(settings)
    assert len(config.fingerprint(settings)) == 16


def test_every_changed_entry_is_found_under_its_dotted_name() -> None:
    settings = config.to_dict(RUN)
    for where in leaves(settings):
        other = changed(settings, where, "another value")
        dotted = ".".join(key for key in where if isinstance(key, str))
        assert list(config.differences(settings, other)) == [dotted]


def test_differences_give_both_values_and_see_entries_of_one_side() -> None:
    old = {"optim": {"lr": 1.0, "gone": 2}, "seed": 0, "same": [1, 2]}
    new = {"optim": {"lr": 3.0, "new": 4}, "seed": 0, "same": [1, 2]}
    found = {"optim.lr": (1.0, 3.0), "optim.gone": (2, None), "optim.new": (None, 4)}
    assert config.differences(old, new) == found
    assert config.differences(old, old) == {}


def test_a_file_that_is_missing_or_no_json_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json does not exist"):
        config.read_json(tmp_path / "run.json")
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"run\.json is not JSON"):
            config.read_json(tmp_path / "run.json")
