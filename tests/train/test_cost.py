"""The cost of a run: operations against torch's counter, memory against torch and DeepSpeed, links by hand.

Some 20 s of one processor: passes over tensors without memory, and four small real ones.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ecgfm.encoders.base import Encoder
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.encoders.vit import ViT
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, Progress, build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.objectives.mae import MAE
from ecgfm.objectives.simclr import SimCLR
from ecgfm.train import cost_trace
from ecgfm.train.cost import by_formula, counted
from ecgfm.train.cost_plan import (
    Assumptions,
    Collective,
    Machine,
    Model,
    Weights,
    build_model,
    collectives,
    count_weights,
    largest,
    split_batch,
    states,
    step,
    traffic,
)
from ecgfm.train.cost_trace import attention_of_torch, traces
from ecgfm.train.engine import recompute_
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.flops import usual_views, window_flops
from ecgfm.train.hardware import NETWORKS, gpu
from ecgfm.train.run import Data, Run

SIZE: dict[str, Any] = {"num_leads": 12, "window_samples": 5000, "rate_hz": 500.0}
TIME = ViT.Config(width=48, patch_samples=100, depth=3, num_heads=4, num_registers=2)
LEADS_APART = LeadTimeViT.Config(width=48, patch_samples=250, depth=2, num_heads=4, num_registers=1, separators=True)
ONE_SHARE = JEPA.Config(mask_ratio=(0.8, 0.8), min_block=4)
# Heads that torch's fused attention takes on a CPU, too.
WIDE = ViT.Config(width=128, patch_samples=100, depth=2, num_heads=2)


def on_meta(objective: Objective.Config, encoder: Encoder.Config) -> Objective:
    with torch.device("meta"):
        return build_objective(objective, encoder, 5000, 500.0)


@pytest.mark.parametrize(
    ("objective", "encoder"),
    [
        (ONE_SHARE, TIME),
        (ONE_SHARE, replace(TIME, width=64, patch_samples=25, depth=2, mlp_ratio=3.0, num_registers=0)),
        (replace(ONE_SHARE, predictor_width=36, predictor_depth=1, predictor_heads=3), TIME),
        (replace(ONE_SHARE, mask="random", mask_leads="apart"), LEADS_APART),
        (ONE_SHARE, replace(LEADS_APART, separators=False, attention="cross")),
        (MAE.Config(decoder_width=32, decoder_depth=2), TIME),
        (MAE.Config(mask_ratio=0.7), LEADS_APART),
        (MAE.Config(hide="times", decode="together"), LEADS_APART),
        (MAE.Config(hide="leads", decode="together"), LEADS_APART),
    ],
)
def test_the_formula_is_what_torch_counts(objective: Objective.Config, encoder: Encoder.Config) -> None:
    own = {part.part: 0.0 for part in by_formula(objective, encoder, 5000)}
    for part in by_formula(objective, encoder, 5000):
        own[part.part] += part.total
    built = on_meta(objective, encoder)
    assert {part.part: part.forward for part in counted(built, **SIZE)} == own
    assert window_flops(on_meta(objective, encoder), **SIZE) == sum(own.values())


def test_of_several_masks_each_is_counted_and_the_target_once() -> None:
    # In whole: of a module that runs several times the counter tells no backward pass from another's.
    several = replace(ONE_SHARE, masks_per_window=3)
    assert window_flops(on_meta(several, TIME), **SIZE) == sum(part.total for part in by_formula(several, TIME, 5000))


def test_the_formula_of_random_masks_is_the_mean_over_them() -> None:
    low, high = (sum(p.total for p in by_formula(JEPA.Config(mask_ratio=(s, s)), TIME, 5000)) for s in (0.7, 0.9))
    mean = sum(part.total for part in by_formula(JEPA.Config(mask_ratio=(0.7, 0.9)), TIME, 5000))
    assert low > mean > high
    # Tokens that are kept are rounded up, by half a one of some ten.
    assert mean == pytest.approx((low + high) / 2, rel=0.02) and mean > (low + high) / 2


def test_what_has_no_formula_is_counted_by_its_modules() -> None:
    objective = SimCLR.Config()
    encoder = ResNet1d.Config()
    assert by_formula(objective, encoder, 4096) == ()
    with torch.device("meta"):
        first, second = (build_objective(objective, encoder, 4096, 500.0) for _ in range(2))
    size = SIZE | {"window_samples": 4096}
    parts = {part.part: part.total for part in counted(first, **size)}
    assert sum(parts.values()) == pytest.approx(window_flops(second, **size), rel=1e-6)
    assert parts["encoder"] > 0.9 * sum(parts.values())


def really_saved(engine: EngineConfig, rows: int) -> int:
    """Return the bytes that torch keeps for the backward pass of a real one."""
    built = on_meta(ONE_SHARE, WIDE)
    views = usual_views(built, **SIZE)
    built = built.to_empty(device="cpu")
    with torch.no_grad():
        for weight in built.parameters():
            weight.normal_(std=0.02)
    if engine.checkpoint_activations:
        recompute_(built, compiled=False)
    tensors: dict[str, Any] = {
        name: value[:1].repeat(rows, *[1] * (value.ndim - 1))
        for name, value in vars(views).items()
        if isinstance(value, Tensor)
    }
    weights = {weight.untyped_storage().data_ptr() for weight in built.parameters()}
    found: dict[int, int] = {}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)  # else its place might be given to another
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            found[place] = tensor.untyped_storage().nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=engine.precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), attention_of_torch(), autocast:
        built(replace(views, **tensors), Progress(step=0, schedule_steps=1))
    return sum(found.values())


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_those_that_torch_keeps(precision: str, recomputed: bool) -> None:
    engine = EngineConfig(precision=precision, checkpoint_activations=recomputed)  # type: ignore[arg-type]
    built = on_meta(ONE_SHARE, WIDE)
    views = usual_views(built, **SIZE)
    if recomputed:
        recompute_(built, compiled=False)
    found = traces(built, views, engine)
    real = really_saved(engine, 5)
    # 5 windows lie far off the two that were traced. Some scalars are kept as well.
    assert found.at(5).saved_bytes == pytest.approx(real, rel=0.01)
    assert found.at(5).peak_bytes > real * 0.9


def test_less_is_in_use_when_activations_are_recomputed_and_in_sixteen_bits() -> None:
    peaks = []
    for precision, again in itertools.product(("float32", "bfloat16", "bfloat16-weights"), (False, True)):
        built = on_meta(ONE_SHARE, WIDE)
        views = usual_views(built, **SIZE)
        if again:
            recompute_(built, compiled=False)
        peaks.append(traces(built, views, EngineConfig(precision=precision)).at(64).peak_bytes)  # type: ignore[arg-type]
    assert peaks[0] > peaks[2] > peaks[4] and all(
        kept > again for kept, again in zip(peaks[::2], peaks[1::2], strict=True)
    )


def test_a_trace_of_more_windows_lies_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> cost_trace.Traces:
        built = on_meta(ONE_SHARE, TIME)
        return traces(built, usual_views(built, **SIZE), EngineConfig(precision="float32"))

    line = found().at(96)
    monkeypatch.setattr(cost_trace, "ROWS", (96, 97))
    there = found().low
    assert line.kinds.keys() == there.kinds.keys() and "attention" in there.kinds
    for kind, work in there.kinds.items():
        assert line.kinds[kind].flops == pytest.approx(work.flops, rel=1e-9), kind
        assert line.kinds[kind].bytes == pytest.approx(work.bytes, rel=1e-9), kind
        assert line.kinds[kind].kernels == work.kernels
    assert line.fused_bytes == pytest.approx(there.fused_bytes, rel=1e-6)
    assert line.peak_bytes == pytest.approx(there.peak_bytes, rel=0.02)
    # A chain moves less when it is fused, and products are not among what is fused.
    rest = sum(work.bytes for kind, work in there.kinds.items() if kind not in cost_trace.PRODUCTS)
    assert 0.2 * rest < there.fused_bytes < 0.9 * rest


def test_model_states_are_those_of_deepspeeds_estimator() -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    weights = Weights(total=8_000_000, trained=8_000_000, averaged=0, low=7_900_000)
    engine = EngineConfig(precision="bfloat16-weights")
    for gpus in (8, 128):
        nodes = gpus // 8
        own = states(weights, engine, 2, gpus)
        _, theirs = estimate_zero2_model_states_mem_needs(8_000_000, 8, nodes, cpu_offload=False)
        assert own.total - own.buckets == pytest.approx(theirs, abs=1)
        own = states(weights, engine, 3, gpus)
        _, theirs, layer = estimate_zero3_model_states_mem_needs(
            8_000_000, 0, 8, nodes, cpu_offload=False, cpu_offload_params=False
        )
        # Theirs counts the largest layer as what is gathered at once, where DeepSpeed keeps all of a small model, and
        # not the gradients of 16 bits beside those of 32.
        ours = own.total - own.buckets - 2 * 8_000_000 - 2 * 8_000_000 / gpus
        assert layer == 0 and ours == pytest.approx(theirs, abs=1)


def test_float32_states_by_stage() -> None:
    # 1 million trained weights and as many that follow them, over 4 GPUs, in 10^6 bytes.
    weights = Weights(total=2_000_000, trained=1_000_000, averaged=1_000_000, low=900_000)
    found = [states(weights, EngineConfig(precision="float32"), stage, 4) for stage in range(4)]
    assert [one.weights / 1e6 for one in found] == [4, 4, 4, 1 + 8]
    assert [one.gradients / 1e6 for one in found] == [4, 5, 2, 2]
    assert [one.optimizer / 1e6 for one in found] == [8, 3, 3, 3]
    assert [one.averages / 1e6 for one in found] == [4, 4, 4, 1]
    assert [one.buckets / 1e6 for one in found] == [4, 4, 4, 2000]  # one holds all, but for stage 3
    assert states(weights, EngineConfig(precision="bfloat16"), 1, 4).buckets == 8e6  # two types of gradients


def test_weights_are_counted_by_what_becomes_of_them() -> None:
    built = on_meta(ONE_SHARE, TIME)
    found = count_weights(built)
    encoder = sum(weight.numel() for weight in built.encoder.parameters())
    assert found.averaged == encoder and found.trained == found.total - encoder
    linear = (part for part in built.modules() if type(part) is torch.nn.Linear)
    trained = sum(part.weight.numel() for part in linear if part.weight.requires_grad)
    # All but the norms, the tokens, and the patches, whose class DeepSpeed does not know.
    assert trained == found.low < found.trained


def machine(**assume: float) -> Machine:
    return Machine(gpu=gpu("H200"), network=NETWORKS["infiniband-400"], gpus_per_node=8, assume=Assumptions(**assume))


def test_collectives_go_within_nodes_first_and_then_between_them() -> None:
    reduce = Collective(what="gradients", reduces=True, bytes=1e9)
    found = traffic(reduce, machine(link_share=1.0), 16)
    assert found.node_bytes == pytest.approx(2 * 7 / 8 * 1e9)
    assert found.network_bytes == pytest.approx(2 * 1 / 2 * 1e9 / 8)
    # 450 and 50 GB/s; a few microseconds of latency.
    assert found.seconds == pytest.approx(1.75 / 450 + 0.125 / 50, rel=0.02)
    alone = traffic(reduce, machine(), 1)
    assert (alone.node_bytes, alone.network_bytes, alone.seconds) == (0, 0, 0)
    gather = traffic(replace(reduce, reduces=False, times=3), machine(), 16)
    assert gather.node_bytes == pytest.approx(1.5 * found.node_bytes)


def test_what_is_sent_by_stage() -> None:
    weights = Weights(total=3_000_000, trained=2_000_000, averaged=1_000_000, low=1_500_000)

    def sent(stage: int, **engine: object) -> list[tuple[str, bool, float, int]]:
        found = collectives(weights, EngineConfig(**engine), stage)  # type: ignore[arg-type]
        return [(one.what, one.reduces, one.bytes / 1e6, one.times) for one in found]

    # Autocast sends the gradients of linear layers in 16 bits, but for stage 0.
    assert sent(0) == [("gradients", True, 8, 1)]
    assert sent(1, accumulation=2) == [("gradients", True, 5, 1), ("weights", False, 8, 1)]
    assert sent(2, accumulation=2) == [("gradients", True, 5, 2), ("weights", False, 8, 1)]
    sixteen = sent(1, precision="bfloat16-weights")
    assert sixteen == [("gradients", True, 4, 1), ("weights", False, 4, 1), ("averages", False, 2, 1)]
    assert sent(3, precision="bfloat16-weights")[1] == ("weights", False, 10, 1)


@pytest.fixture(scope="module")
def model() -> Model:
    run = Run(encoder=WIDE, objective=ONE_SHARE, data=Data(batch_size=1024))
    return build_model(run, 500.0)[0]


def test_the_wall_is_what_is_slowest(model: Model) -> None:
    def wall(where: Machine, gpus: int = 1, micro: int = 1024) -> str:
        return step(model, where, gpus=gpus, micro=micro, accumulation=1, stage=1).wall

    assert wall(machine(loader_gb_s=0.001)) == "loader"
    assert wall(machine(launch_us=1000.0)) == "launches"
    assert wall(replace(machine(launch_us=0.0), network=NETWORKS["ethernet-10"]), gpus=1024, micro=1) == "link"
    free = {"launch_us": 0.0, "loader_gb_s": 1000.0}
    assert wall(machine(bandwidth_share=1.0, product_share=1e-4, **free)) == "compute"
    assert wall(machine(bandwidth_share=1e-3, product_share=1.0, **free)) == "memory bandwidth"


def test_a_measured_share_of_the_peak_tells_the_time(model: Model) -> None:
    found = step(model, machine(mfu=0.4, loader_gb_s=1e6), gpus=1, micro=512, accumulation=2, stage=1)
    assert 1024 * model.flops / found.device_s == pytest.approx(0.4 * 989.4e12, rel=0.05)
    assert found.launch_s == 0


def test_the_largest_micro_batch_fills_the_memory(model: Model) -> None:
    small = replace(machine(), gpu=gpu("RTX 4090"))
    most = largest(model, small, 0, 1, recomputed=False)
    assert 100 < most < largest(model, small, 0, 1, recomputed=True) <= largest(model, machine(), 0, 1, recomputed=True)
    assert largest(model, replace(small, gpu=replace(small.gpu, memory_gb=0.01)), 0, 1, recomputed=False) == 0


def test_a_batch_is_split_into_as_few_micro_batches_as_fit() -> None:
    assert split_batch(2048, 8, 1000) == (256, 1)
    assert split_batch(2048, 8, 100) == (64, 4)
    assert split_batch(96, 1, 50) == (48, 2)
    assert split_batch(2048, 3, 1000) is None and split_batch(2048, 8, 0) is None


def test_assumptions_are_shares() -> None:
    for wrong in ({"product_share": 0.0}, {"overlap": 1.5}, {"mfu": 2.0}, {"loader_gb_s": 0.0}):
        with pytest.raises(ConfigError, match="--assume"):
            Assumptions(**wrong)
    with pytest.raises(ConfigError, match="H200"):
        gpu("H20")
