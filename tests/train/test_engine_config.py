"""What the engine refuses, and what DeepSpeed is given."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ecgfm.errors import ConfigError
from ecgfm.train.engine_config import FREE_ENGINE, EngineConfig, check_device, deepspeed_settings


def given(folder: Path, content: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration with this content of --engine.extra."""
    path = folder / "extra.json"
    path.write_text(json.dumps(content))
    return deepspeed_settings(EngineConfig(zero_stage=2, extra=path), micro_batch_size=4, clip_norm=None)


def test_nothing_measures_throughput_by_waiting_for_the_device() -> None:
    plain = deepspeed_settings(EngineConfig(), micro_batch_size=4, clip_norm=None)
    assert plain["timers"] == {"throughput": {"enabled": False}}


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
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "sets 'data_types'"),
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
        ({"zero_stage": 3, "precision": "float32", "compile": True}, "--engine.compile does not go with"),
        ({"zero_stage": 0, "precision": "bfloat16-weights"}, "use --engine.zero-stage 1, which on one rank"),
        ({"zero_stage": 0, "precision": "float16"}, "--engine.precision float16 needs float32 masters"),
        ({"zero_stage": 0, "offload": True}, "--engine.offload needs ZeRO"),
        ({"loss_scale": 1000.0}, "--engine.loss-scale 1000.0 must be a power of 2"),
        ({"loss_scale": float("inf")}, "must be a power of 2"),
        ({"loss_scale": 0.5}, "must be a power of 2, at least 1"),
        ({"loss_scale_window": 0}, "--engine.loss-scale-window 0 at least 1"),
        ({"timeout_min": 0.0}, "--engine.timeout-min must be above 0"),
        ({"timeout_min": 1441.0}, "at most a day"),
        ({"timeout_min": float("nan")}, "--engine.timeout-min must be above 0"),
        ({"cuda_graphs": True}, "--engine.cuda-graphs records what --engine.compile makes"),
        ({"cuda_graphs": True, "compile": True, "zero_stage": 2}, "ZeRO beyond stage 1 (--engine.zero-stage 2)"),
        ({"accumulation": 0}, "--engine.accumulation must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        EngineConfig(**settings)


def test_float16_is_refused_without_a_gpu() -> None:
    config = EngineConfig(precision="float16")
    check_device(config, gpu=True)
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        check_device(config, gpu=False)
    check_device(EngineConfig(precision="bfloat16-weights"), gpu=False)


def test_how_a_step_is_done_may_change_when_a_run_goes_on_and_its_precision_may_not() -> None:
    names = {field.name for field in fields(EngineConfig)}
    assert names - set(FREE_ENGINE) == {
        "zero_stage",
        "precision",
        "accumulation",
        "loss_scale",
        "loss_scale_window",
        "extra",
    }
