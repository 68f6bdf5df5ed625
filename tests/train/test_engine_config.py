"""What the engine refuses, and what DeepSpeed is given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ecgfm.errors import ConfigError
from ecgfm.train.engine_config import EngineConfig, deepspeed_settings


def given(folder: Path, content: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration with this content of --engine.extra."""
    path = folder / "extra.json"
    path.write_text(json.dumps(content))
    return deepspeed_settings(EngineConfig(zero_stage=2, extra=path), micro_batch_size=4, clip_norm=None)


def test_extra_settings_are_added_within_ours(tmp_path: Path) -> None:
    extra = {"zero_optimization": {"overlap_comm": True}, "comms_logger": {"enabled": False}}
    plain = deepspeed_settings(EngineConfig(zero_stage=2), micro_batch_size=4, clip_norm=None)
    zero = {"stage": 2, "overlap_comm": True}
    assert given(tmp_path, extra) == {**plain, "zero_optimization": zero, "comms_logger": {"enabled": False}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"gradient_accumulation_steps": 4}, "sets 'gradient_accumulation_steps'"),
        ({"zero_optimization": {"stage": 3}}, "sets 'zero_optimization.stage'"),
        ({"zero_optimization": 3}, "sets 'zero_optimization'"),
        ({"bf16": {"enabled": True}}, "sets 'bf16'"),
        ({"train_batch_size": 8}, "sets 'train_batch_size'"),
        ([1], "must hold a JSON object"),
    ],
)
def test_extra_settings_cannot_change_ours(tmp_path: Path, content: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        given(tmp_path, content)


def test_a_missing_file_of_extra_settings_is_named(tmp_path: Path) -> None:
    config = EngineConfig(extra=tmp_path / "no.json")
    with pytest.raises(ConfigError, match=r"no\.json does not exist"):
        deepspeed_settings(config, micro_batch_size=4, clip_norm=None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"zero_stage": 3, "precision": "bfloat16"}, "does not go on from a checkpoint to the same losses"),
        ({"zero_stage": 3, "precision": "float32"}, "needs whole weights on every rank"),
        ({"timeout_min": 0.0}, "--engine.timeout-min must be above 0"),
        ({"timeout_min": 1441.0}, "at most a day"),
        ({"timeout_min": float("nan")}, "--engine.timeout-min must be above 0"),
        ({"accumulation": 0}, "--engine.accumulation must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        EngineConfig(**settings)
