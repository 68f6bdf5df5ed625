"""The convolutional encoders against others' two-dimensional ones, and against loops in float64."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torchvision  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfm.encoders import inception1d, resnet1d, u_resnet, xresnet1d
from ecgfm.encoders._convolutional import Convolutional
from ecgfm.encoders.base import Encoder, build_encoder, check_window
from ecgfm.encoders.inception1d import Inception1d
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.encoders.ts_cnn import TSCNN
from ecgfm.encoders.u_resnet import UResNet
from ecgfm.encoders.vit import ViT
from ecgfm.encoders.xresnet1d import XResNet1d
from ecgfm.errors import ConfigError
from ecgfm.nn.u_decoder import UDecoder

Array = NDArray[np.float64]
SIZES: dict[str, tuple[Convolutional.Config, int]] = {
    "resnet18": (resnet1d.RESNET18, 3_848_832),
    "resnet34": (resnet1d.RESNET34, 7_223_168),
    "wang": (resnet1d.WANG, 439_040),
    "xresnet1d50": (xresnet1d.X50, 886_400),
    "xresnet1d101": (xresnet1d.X101, 1_804_672),
    "inception": (inception1d.INCEPTION, 473_344),
    "u_resnet": (UResNet.Config(), 6_919_584),
    "u_resnet of the paper": (u_resnet.PAPER, 6_919_584),
    "ts_cnn": (TSCNN.Config(), 140_944),
}
SMALL = {
    "wang": ResNet1d.Config(
        width=8, num_leads=3, patch_samples=4, layers=(1, 1, 1), doubles=False, kernels=(5, 3), stem_stride=1,
        stem_pool=False,
    ),
    "inception": Inception1d.Config(width=12, num_leads=3, bottleneck=5, kernels=(9, 3)),
    "u_resnet": UResNet.Config(
        width=7, num_leads=3, patch_samples=10, widths=(4, 6), strides=(5, 2), kernel=5
    ),
    "ts_cnn": TSCNN.Config(
        width=5, num_leads=3, patch_samples=10, channels=(4, 3), kernels=(5, 3), pools=(5, 2), spatial=6
    ),
}  # fmt: skip


def stir_(module: nn.Module) -> nn.Module:
    """Bring weights and running averages far from their start, so that every term counts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, values in [*module.named_parameters(), *module.named_buffers()]:
            noise = torch.rand(values.shape, generator=generator)
            if name.endswith("running_var"):
                values.copy_(0.5 + noise)
            elif values.is_floating_point():
                values.add_(0.3 * (noise - 0.5))
    return module.eval()


def build(config: Encoder.Config) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(config)
    stir_(encoder)
    return encoder


def signal(config: Encoder.Config, steps: int, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, config.num_leads, steps * config.patch_samples, generator=generator)


# One axis beside two


def kernels_and_norms(module: nn.Module) -> list[nn.Module]:
    wanted = (nn.Conv1d, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)
    return [part for part in module.modules() if isinstance(part, wanted)]


def into_the_middle_(flat: nn.Module, deep: nn.Module) -> None:
    """Copy one-dimensional weights into the middle row of two-dimensional ones, layer by layer in their order.

    On an image of one row the other rows of a kernel see padding only; they stay as they are.
    """
    ours, theirs = kernels_and_norms(flat), kernels_and_norms(deep)
    assert len(ours) == len(theirs)
    with torch.no_grad():
        for source, target in zip(ours, theirs, strict=True):
            if isinstance(source, nn.Conv1d):
                assert isinstance(target, nn.Conv2d)
                target.weight[:, :, target.weight.shape[2] // 2] = source.weight
            else:
                target.load_state_dict(source.state_dict())


def test_resnet18_is_torchvisions_on_an_image_of_one_row() -> None:
    encoder = build(resnet1d.RESNET18)
    theirs = torchvision.models.resnet18()
    theirs.conv1 = nn.Conv2d(12, 64, 7, stride=2, padding=3, bias=False)
    into_the_middle_(encoder, theirs)
    theirs.avgpool = theirs.fc = nn.Identity()
    signal_BLT = signal(encoder.config, 5)
    with torch.no_grad():
        wanted_BND = theirs.eval()(signal_BLT[:, :, None]).reshape(2, 512, 5).transpose(1, 2)
        tokens_BND = encoder(signal_BLT)
    assert wanted_BND.std() > 0.1
    # Float32 through 20 layers, in another order of sums.
    torch.testing.assert_close(tokens_BND / wanted_BND.std(), wanted_BND / wanted_BND.std(), atol=1e-4, rtol=1e-4)


def test_xresnet_is_timms_on_an_image_of_one_row() -> None:
    # timm's blocks know kernels of 3 only, and convolve where the steps are halved and the width stays.
    encoder = build(XResNet1d.Config(kernel=3, layers=(2, 2, 1), patch_samples=16))
    theirs = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck,  # type: ignore[arg-type]  # timm asks for an object of it
        layers=(2, 2, 1, 1),
        in_chans=12,
        stem_type="deep",
        stem_width=32,
        avg_down=True,
        channels=(64, 64, 64, 64),
        num_classes=0,
        global_pool="",
    ).eval()
    theirs.layer4 = nn.Identity()
    for block in (theirs.get_submodule("layer2.0"), theirs.get_submodule("layer3.0")):
        block.downsample = block.get_submodule("downsample.0")
    into_the_middle_(encoder, theirs)
    signal_BLT = signal(encoder.config, 5)
    with torch.no_grad():
        wanted_BND = theirs(signal_BLT[:, :, None]).squeeze(2).transpose(1, 2)
        tokens_BND = encoder(signal_BLT)
    assert wanted_BND.std() > 0.1
    torch.testing.assert_close(tokens_BND / wanted_BND.std(), wanted_BND / wanted_BND.std(), atol=1e-4, rtol=1e-4)


# Loops in float64, from the state alone


class Slow:
    """Layers by name, of one window, one output at a time."""

    def __init__(self, module: nn.Module) -> None:
        self.state = {name: weight.detach().double().numpy() for name, weight in module.state_dict().items()}

    def conv(self, name: str, map_CT: Array, stride: int = 1, left: int | None = None) -> Array:
        """Convolve a signal with `left` zeros before it and as many after as the steps need."""
        weight_DCK = self.state[f"{name}.weight"]
        kernel = weight_DCK.shape[2]
        left = (kernel - 1) // 2 if left is None else left
        padded = np.pad(map_CT, ((0, 0), (left, kernel)))
        steps = range(map_CT.shape[1] // stride)
        windows = [padded[:, step * stride : step * stride + kernel] for step in steps]
        return np.array([[(weight_CK * window).sum() for window in windows] for weight_CK in weight_DCK])

    def norm(self, name: str, values: Array) -> Array:
        """Normalise each row, whatever axes follow, by the running averages."""
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"].reshape(-1, *[1] * (values.ndim - 1))
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        normal: Array = (values - mean) / np.sqrt(var + 1e-5) * weight + bias
        return normal

    def pre(self, name: str, map_CT: Array, stride: int, *, first: bool = False, widens: bool = True) -> Array:
        """Do a block of norm, ReLU, convolution, twice."""
        inner = map_CT if first else relu(self.norm(f"{name}.before.0", map_CT))
        inner = relu(self.norm(f"{name}.between.0", self.conv(f"{name}.conv1", inner)))
        kernel = self.state[f"{name}.conv2.weight"].shape[2]
        inner = self.conv(f"{name}.conv2", inner, stride, left=(kernel - stride + 1) // 2)
        passed = largest(map_CT, stride)
        return inner + (self.conv(f"{name}.skip.1", passed) if widens else passed)


def relu(values: Array) -> Array:
    return np.where(values > 0, values, 0.0)


def largest(values: Array, over: int) -> Array:
    most: Array = values.reshape(*values.shape[:-1], -1, over).max(axis=-1)
    return most


def slow_wang(encoder: Encoder, signal_LT: Array) -> Array:
    slow = Slow(encoder)
    map_CT = relu(slow.norm("stem.1", slow.conv("stem.0", signal_LT)))
    for block, stride in enumerate((1, 2, 2)):
        name = f"blocks.{block}"
        inner = relu(slow.norm(f"{name}.residual.0.1", slow.conv(f"{name}.residual.0.0", map_CT, stride)))
        inner = slow.norm(f"{name}.residual.1.1", slow.conv(f"{name}.residual.1.0", inner))
        passed = slow.norm(f"{name}.skip.1", slow.conv(f"{name}.skip.0", map_CT, stride)) if block else map_CT
        map_CT = relu(inner + passed)
    return map_CT


def slow_inception(encoder: Encoder, signal_LT: Array) -> Array:
    slow = Slow(encoder)
    group_CT = signal_LT
    for group in range(2):
        map_CT = group_CT
        for module in range(3):
            name = f"blocks.{group}.residual.{module}"
            narrow = slow.conv(f"{name}.bottleneck", map_CT)
            around = np.pad(map_CT, ((0, 0), (1, 1)), constant_values=-np.inf)
            pooled = np.array([around[:, step : step + 3].max(axis=1) for step in range(map_CT.shape[1])]).T
            side = [slow.conv(f"{name}.convs.{number}", narrow) for number in range(2)]
            map_CT = relu(slow.norm(f"{name}.norm", np.concatenate([*side, slow.conv(f"{name}.pooled.1", pooled)])))
        skip = f"blocks.{group}.skip"
        group_CT = relu(map_CT + slow.norm(f"{skip}.1", slow.conv(f"{skip}.0", group_CT)))
    return group_CT


def slow_levels(encoder: Encoder, signal_LT: Array) -> list[Array]:
    slow = Slow(encoder)
    map_CT = slow.norm("stem.1", slow.conv("stem.0", signal_LT))
    levels = [slow.pre("blocks.0", map_CT, 1, first=True, widens=False)]
    for block, stride in ((1, 5), (2, 2)):
        levels.append(slow.pre(f"blocks.{block}", levels[-1], stride))
    return [*levels[:-1], relu(slow.norm("last.0", levels[-1]))]


def slow_ts_cnn(encoder: Encoder, signal_LT: Array) -> Array:
    slow = Slow(encoder)
    leads = [signal_LT[lead : lead + 1] for lead in range(3)]
    for block, pool in ((0, 5), (1, 2)):
        # The same weights on each lead by itself.
        slow.state["now.weight"] = slow.state[f"blocks.{block}.0.weight"][:, :, 0]
        leads = [largest(relu(slow.norm(f"blocks.{block}.1", slow.conv("now", lead))), pool) for lead in leads]
    across = slow.state["blocks.2.0.weight"][:, :, :, 0]  # out, channels, leads
    map_CN = sum(across[:, :, lead] @ leads[lead] for lead in range(3))
    map_CN = relu(slow.norm("blocks.2.1", np.asarray(map_CN)))
    projected: Array = slow.state["project.weight"] @ map_CN + slow.state["project.bias"][:, None]
    return projected


SLOW: dict[str, Callable[[Encoder, Array], Array]] = {
    "wang": slow_wang,
    "inception": slow_inception,
    "u_resnet": lambda encoder, signal_LT: slow_levels(encoder, signal_LT)[-1],
    "ts_cnn": slow_ts_cnn,
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("steps", [1, 4])
def test_tokens_are_those_of_float64(name: str, steps: int) -> None:
    encoder = build(SMALL[name])
    signal_BLT = signal(encoder.config, steps)
    wanted = np.stack([SLOW[name](encoder, row.double().numpy()).T for row in signal_BLT])
    assert wanted.std() > 0.05
    # Float32, of values of order 1.
    torch.testing.assert_close(encoder(signal_BLT).double(), torch.from_numpy(wanted), atol=2e-5, rtol=1e-5)


# The way back to a signal


def test_the_decoder_is_that_of_float64() -> None:
    encoder = build(SMALL["u_resnet"])
    assert isinstance(encoder, UResNet)
    decoder = UDecoder((4, 6, 7), (5, 2), 3, kernel=5)
    stir_(decoder)
    signal_BLT = signal(encoder.config, 3, rows=1)
    slow = Slow(decoder)
    *before, map_CT = slow_levels(encoder, signal_BLT[0].double().numpy())
    for level, stride in ((0, 2), (1, 5)):
        weight_CDK = slow.state[f"widen.{level}.weight"]
        columns = [weight_CDK[:, :, at % stride].T @ map_CT[:, at // stride] for at in range(map_CT.shape[1] * stride)]
        map_CT = slow.pre(f"join.{level}", np.concatenate([np.array(columns).T, before[1 - level]]), 1)
    wanted_LT = slow.conv("last.2", relu(slow.norm("last.0", map_CT))) + slow.state["last.2.bias"][:, None]
    found_BLT = decoder(encoder.levels(signal_BLT))
    assert found_BLT.shape == signal_BLT.shape
    torch.testing.assert_close(found_BLT[0].double(), torch.from_numpy(wanted_LT), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("config", "samples"), [(UResNet.Config(), 5000), (u_resnet.PAPER, 4096)])
def test_ten_seconds_go_through_the_u_and_come_back(config: UResNet.Config, samples: int) -> None:
    check_window(config, samples)
    with torch.device("meta"):
        encoder = UResNet(config)
        decoder = UDecoder((*config.widths, config.width), config.strides, 12, kernel=config.kernel)
        levels = encoder.levels(torch.zeros(2, 12, samples))
        assert decoder(levels).shape == (2, 12, samples)
    assert [level.shape[1] for level in levels] == [64, 128, 196, 256, 320]
    if samples == 4096:
        assert [level.shape[2] for level in levels] == [4096, 1024, 256, 64, 16]


def test_every_weight_of_encoder_and_decoder_learns_from_the_signal_that_comes_out() -> None:
    encoder = build(SMALL["u_resnet"]).train()
    assert isinstance(encoder, UResNet)
    decoder = UDecoder((4, 6, 7), (5, 2), 3, kernel=5)
    signal_BLT = signal(encoder.config, 3)
    torch.autograd.backward((decoder(encoder.levels(signal_BLT)) - signal_BLT).square().mean())
    for name, weight in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


# Sizes, starts, refusals


@pytest.mark.parametrize("name", SIZES)
def test_sizes_have_the_stated_number_of_parameters(name: str) -> None:
    config, wanted = SIZES[name]
    with torch.device("meta"):
        encoder = build_encoder(config)
    assert sum(weight.numel() for weight in encoder.parameters()) == wanted


def test_resnet18_has_torchvisions_parameters_with_one_axis_less() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet18()
    wanted = 0
    for name, weight in theirs.named_parameters():
        if not name.startswith("fc."):
            wanted += weight.numel() // (weight.shape[2] if weight.ndim == 4 else 1)
    wanted += (12 - 3) * 64 * 7  # leads instead of colours
    assert wanted == SIZES["resnet18"][1]


def test_xresnet_begins_shallow() -> None:
    torch.manual_seed(0)
    block = xresnet1d.Bottleneck(8, 8, 5, 1, norm="batch")
    map_BCT = torch.rand(2, 8, 20)
    assert torch.equal(block(map_BCT), map_BCT)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 12 * 7), ("fan_out", 64 * 7)])
def test_convolutions_begin_at_the_stated_spread(mode: str, fan: int) -> None:
    torch.manual_seed(0)
    config = {"fan_in": XResNet1d.Config(width=512, kernel=7), "fan_out": ResNet1d.Config()}[mode]
    weight = next(build_encoder(config).parameters())
    # 5,376 numbers: the estimate's relative error is 1 %.
    assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("norm", ["batch", "rank-batch", "group"])
def test_bfloat16_autocast_trains_with_every_norm(name: str, norm: str) -> None:
    settings = {**vars(SMALL[name]), "norm": norm}
    encoder = build(type(SMALL[name])(**settings)).train()
    signal_BLT = signal(encoder.config, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features_BD = encoder.pool(encoder(signal_BLT))
    exact_BD = encoder.pool(encoder(signal_BLT))
    assert features_BD.dtype == torch.float32
    # Eight bits a number, through some ten layers; relative to the features' size.
    assert (features_BD - exact_BD).norm() < 0.05 * exact_BD.norm()
    torch.autograd.backward(features_BD.square().sum())
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in encoder.parameters())


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (ResNet1d.Config, {"patch_samples": 16}, "--encoder.patch-samples 16 must be 32"),
        (ResNet1d.Config, {"stem_pool": False}, "--encoder.patch-samples 32 must be 16"),
        (ResNet1d.Config, {"width": 100}, "--encoder.width 100 must be a multiple of 8"),
        (ResNet1d.Config, {"layers": ()}, "--encoder.layers needs at least one value"),
        (ResNet1d.Config, {"layers": (2, 0, 2, 2)}, "--encoder.layers must be at least 1, got (2, 0, 2, 2)"),
        (ResNet1d.Config, {"stem_stride": 9, "patch_samples": 144}, "--encoder.stem-stride 9 must not be above"),
        (XResNet1d.Config, {"kernel": 4}, "--encoder.kernel must be odd, to be centred on a sample, got 4"),
        (XResNet1d.Config, {"width": 100}, "--encoder.width 100 must be a multiple of 8"),
        (XResNet1d.Config, {"num_leads": 0}, "--encoder.num-leads must be at least 1, got 0"),
        (Inception1d.Config, {"kernels": (40, 20, 10)}, "--encoder.kernels must be odd"),
        (Inception1d.Config, {"depth": 4}, "--encoder.depth 4 must be a multiple of 3"),
        (Inception1d.Config, {"width": 130}, "--encoder.width 130 must be a multiple of 4"),
        (UResNet.Config, {"strides": (4, 4)}, "--encoder.patch-samples 250 must be 16"),
        (UResNet.Config, {"strides": (10, 25), "kernel": 25}, "needs one for each of the 4 blocks"),
        (UResNet.Config, {"kernel": 3}, "--encoder.strides (5, 5, 5, 2) must not be above --encoder.kernel 3"),
        (TSCNN.Config, {"channels": (16, 16)}, "one value for each temporal block, got 2, 6 and 6"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(
    config: type[Encoder.Config], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(**settings)  # type: ignore[arg-type]


def test_windows_that_steps_do_not_fill_are_refused_with_those_that_do() -> None:
    check_window(resnet1d.RESNET18, 4992)
    check_window(ViT.Config(), 5000)
    for config in (TSCNN.Config(), UResNet.Config(), resnet1d.WANG, inception1d.INCEPTION):
        check_window(config, 5000)
    with pytest.raises(ConfigError, match=r"5000 samples.*steps of 32 that resnet1d makes.*4992 or 5024 samples"):
        check_window(resnet1d.RESNET18, 5000)
    with pytest.raises(ConfigError, match=r"30 samples.*--data.window-s to 32 samples"):
        check_window(resnet1d.RESNET18, 30)
