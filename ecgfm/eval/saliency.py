"""What in a recording an answer rests on: Grad-CAM, attention maps and attention rollout.

- `grad-cam` (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391): the encoder's last feature map, each channel
  weighted by the mean gradient of the label's logit, below zero cut off. Of a recording of several windows the logit is
  the recording's. The map is the tokens', but for encoders that do more after their last convolution: of `ts_cnn` it is
  the one before the leads are joined, as in Nakamoto et al. 2021, and of `s4` and `lstm` the stem's.
- `attention`: how much the last block attends to each token, mean over heads.
- `rollout` (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928): the same through all blocks, each half attention
  and half residual.

The last two are of vision transformers and know no label: they tell what is read, not what for. Their queries are
weighted as the features are made: evenly, or, under an attentive head, by the head's own attention. Registers and
separators take part and are not shown. All are maps of an encoder's steps: one value holds for a whole step, and, but
where an encoder keeps leads apart, for all leads. None is evidence of a cause.

Shapes: B windows, L leads, T samples, S steps, N tokens, Q tokens with registers, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.attention import Attention
from torch import Tensor, nn

from ecgfm import parts
from ecgfm.encoders._contextual import Contextual
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.ts_cnn import TSCNN
from ecgfm.errors import ConfigError, SignalError
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.hub.heads import Attentive
from ecgfm.hub.recordings import Signal
from ecgfm.hub.reference import evaluating

Method = Literal["grad-cam", "attention", "rollout"]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """A map over one recording."""

    method: Method
    label: str | None
    """Whose logit it explains; None of attention and rollout."""
    signal_LT: Floats
    """The recording in millivolt as the encoder sees it, before it is scaled."""
    leads: tuple[str, ...]
    rate_hz: float
    weight_LT: Floats
    """In [0, 1]: 1 is the recording's highest value, and 0 none (grad-cam) or the lowest (attention, rollout)."""
    lowest: float
    """What weight 0 stands for: a gradient, or times an even share of the attention."""
    highest: float
    """What weight 1 stands for."""
    step_s: float
    """Seconds that share one value."""
    leads_apart: bool
    """Whether leads have values of their own."""

    @property
    def title(self) -> str:
        """What is shown, in a few words."""
        words = {"grad-cam": "Grad-CAM", "attention": "attention of the last block", "rollout": "attention rollout"}
        return words[self.method] + (f" of {self.label}" if self.label else "")

    @property
    def words(self) -> str:
        """How fine the map is, or that it is empty."""
        if not self.weight_LT.any():
            return f"empty, as nothing in the recording speaks for {self.label}" if self.label else "empty"
        shared = "" if self.leads_apart else ", shared by all leads"
        return f"one value for each {self.step_s * 1000:.3g} ms{shared}"

    def on(self, leads: Sequence[str], rate_hz: float, samples: int) -> Floats:
        """Return weight_LT for the leads and samples of the recording as it came; 0 of a lead that is not encoded."""
        index = np.minimum(
            (np.arange(samples) * (self.rate_hz / rate_hz)).astype(np.int64), self.weight_LT.shape[1] - 1
        )
        out = np.zeros((len(leads), samples), dtype=np.float32)
        for row, lead in enumerate(leads):
            if lead in self.leads:
                out[row] = self.weight_LT[self.leads.index(lead)][index]
        return out


def saliency(
    model: ECGClassifier | ECGEncoder,
    signal: Signal,
    *,
    rate_hz: float,
    leads: Sequence[str],
    unit: str,
    label: str | None = None,
    method: Method | None = None,
) -> Saliency:
    """Return the map of one recording as it comes.

    Windows are those of prediction. Where they overlap the map is their mean; a rest that fills no step has weight 0.

    Args:
        model: An encoder alone has attention and rollout.
        signal: (L, T), as for `ECGEncoder.embed`, like the next three.
        rate_hz: Its sampling rate.
        leads: Its lead names.
        unit: mV, uV or V.
        label: Whose logit grad-cam explains; by default the highest.
        method: grad-cam by default, and of an encoder alone rollout.

    Raises:
        ConfigError: A label that the classifier lacks, or a method that the encoder cannot have.
        LeadError: As `ECGEncoder.embed`.
        SignalError: As `ECGEncoder.embed`; or it is more than one recording.
    """
    encoder = model.encoder if isinstance(model, ECGClassifier) else model
    method = method or ("grad-cam" if isinstance(model, ECGClassifier) else "rollout")
    column = _column(model, method, label)
    records = encoder.preprocessor(signal, rate_hz=rate_hz, leads=leads, unit=unit)
    if len(records) != 1:
        raise SignalError(f"saliency takes one recording at a time, got {len(records)}")
    record_LT = records[0]
    places = _places(model, record_LT.shape[1])
    windows_BLT = torch.from_numpy(np.stack([record_LT[:, start:stop] for start, stop in places]))
    windows_BLT = windows_BLT.to(next(encoder.parameters()).device)
    if isinstance(model, ECGClassifier) and method == "grad-cam":
        map_BLS, column = _grad_cam(model, windows_BLT, column)
    else:
        map_BLS = _attention_maps(model, windows_BLT, rollout=method == "rollout")
    leads_apart = map_BLS.shape[1] > 1
    joined_LT = _join(map_BLS, places, record_LT.shape)
    last = max(stop for _, stop in places)
    lowest = 0.0 if method == "grad-cam" else float(joined_LT[:, :last].min())
    highest = float(joined_LT[:, :last].max())
    span = highest - lowest
    weight_LT = np.zeros_like(joined_LT) if span <= 0 else ((joined_LT - lowest) / span).clip(0, 1)
    weight_LT[:, last:] = 0.0
    return Saliency(
        method=method,
        label=model.labels[column] if isinstance(model, ECGClassifier) and column is not None else None,
        signal_LT=record_LT,
        leads=tuple(encoder.signal.leads),
        rate_hz=encoder.signal.rate_hz,
        weight_LT=weight_LT.astype(np.float32),
        lowest=lowest,
        highest=highest,
        step_s=windows_BLT.shape[2] / map_BLS.shape[2] / encoder.signal.rate_hz,
        leads_apart=leads_apart,
    )


def methods(encoder: Encoder) -> tuple[Method, ...]:
    """Return the methods that an encoder under a head can have."""
    return get_args(Method) if _attention_layers(encoder) else ("grad-cam",)


def _column(model: ECGClassifier | ECGEncoder, method: Method, label: str | None) -> int | None:
    """Return the label's column, or None where the highest is meant or no label plays a part."""
    encoder = model.encoder.encoder if isinstance(model, ECGClassifier) else model.encoder
    kind = parts.kind_of(type(encoder.config))
    if method not in get_args(Method):
        raise ConfigError(f"method {method!r} is none of {', '.join(get_args(Method))}")
    if method != "grad-cam" and not _attention_layers(encoder):
        raise ConfigError(f"method {method} shows attention, of which the encoder {kind} has none; use grad-cam")
    if method == "grad-cam" and not isinstance(model, ECGClassifier):
        raise ConfigError("grad-cam explains a label's logit, and an encoder alone has none; give a classifier")
    if label is None:
        return None
    if method != "grad-cam":
        raise ConfigError(f"method {method} knows no label; leave label={label!r} out, or use grad-cam")
    assert isinstance(model, ECGClassifier)
    if label not in model.labels:
        raise ConfigError(f"label {label!r} is none of the classifier's: {', '.join(model.labels)}")
    return model.labels.index(label)


def _places(model: ECGClassifier | ECGEncoder, samples: int) -> list[tuple[int, int]]:
    make = model.preprocessor if isinstance(model, ECGEncoder) else model.encoder.preprocessor
    window_s = None if isinstance(model, ECGEncoder) else model.window_s
    stride_s = None if isinstance(model, ECGEncoder) else model.stride_s
    return make.places(
        samples,
        length=None if window_s is None else make.samples(window_s),
        stride=None if stride_s is None else make.samples(stride_s),
    )


def _grad_cam(model: ECGClassifier, windows_BLT: Tensor, column: int | None) -> tuple[Tensor, int]:
    """Return map_BLS, with L 1 where leads are not apart, and the column that it is of."""
    encoder = model.encoder.encoder
    maps, logits, gradients = [], [], []
    # Recurrent layers of cuDNN have no gradient in evaluation mode; the signal needs one where all weights are frozen.
    with evaluating(model), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        if column is None:
            with torch.no_grad():
                every_BC = torch.cat([model(window_LT[None]) for window_LT in windows_BLT])
            column = int((every_BC.amax(0) if model.aggregate == "max" else every_BC.mean(0)).argmax())
        for window_LT in windows_BLT:  # one by one: a long recording's gradients need not fit at once
            with _last_map(encoder) as taken:
                logit = model(window_LT[None].clone().requires_grad_())[0, column]
            (gradient,) = torch.autograd.grad(logit, taken)
            maps.append(_by_lead(encoder, taken[0].detach()))
            gradients.append(_by_lead(encoder, gradient))
            logits.append(logit.detach())
    map_BDLS, gradient_BDLS = torch.cat(maps).float(), torch.cat(gradients).float()
    share_B = torch.full((len(logits),), 1 / len(logits), device=map_BDLS.device)
    if model.aggregate == "max":  # the recording's logit is that of one window
        share_B = (torch.arange(len(logits), device=map_BDLS.device) == torch.stack(logits).argmax()).float()
    weight_BD11 = gradient_BDLS.mean(dim=(2, 3), keepdim=True) * share_B[:, None, None, None]
    return (weight_BD11 * map_BDLS).sum(dim=1).relu(), column


@contextmanager
def _last_map(encoder: Encoder) -> Iterator[list[Tensor]]:
    """Have the encoder's last feature map put into the list that is yielded."""
    module: nn.Module = encoder
    if isinstance(encoder, TSCNN):
        module = encoder.blocks[-2]
    elif isinstance(encoder, Contextual):
        module = encoder.stem
    taken: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: taken.append(output))
    try:
        yield taken
    finally:
        handle.remove()


def _by_lead(encoder: Encoder, map_: Tensor) -> Tensor:
    """Return a feature map or its gradient as (B, D, L, S), with L 1 where leads are not apart."""
    if isinstance(encoder, TSCNN):
        return map_
    map_BDN = map_ if isinstance(encoder, Contextual) else map_.transpose(1, 2)
    return map_BDN.reshape(*map_BDN.shape[:2], _num_rows(encoder), -1)


def _num_rows(encoder: Encoder) -> int:
    return encoder.config.num_leads if encoder.config.leads_apart else 1


@torch.no_grad()
def _attention_maps(model: ECGClassifier | ECGEncoder, windows_BLT: Tensor, *, rollout: bool) -> Tensor:
    """Return map_BLS, in times an even share."""
    ecg_encoder = model.encoder if isinstance(model, ECGClassifier) else model
    encoder = ecg_encoder.encoder
    layers = _attention_layers(encoder)
    maps = []
    with evaluating(model):
        for window_LT in windows_BLT:  # one by one: attention is quadratic in the tokens
            found = _Attended(rollout=rollout)
            handles = [layer.register_forward_pre_hook(found, with_kwargs=True) for layer in layers]
            try:
                tokens_1ND = ecg_encoder(ecg_encoder.normalise(window_LT[None]))
            finally:
                for handle in handles:
                    handle.remove()
            assert found.matrix_QQ is not None
            beside = found.matrix_QQ.shape[0] - tokens_1ND.shape[1]  # registers and separators stand first
            query_N = _query_weights(model, tokens_1ND)
            share_N = query_N @ found.matrix_QQ[beside:, beside:]
            maps.append((share_N / share_N.mean()).reshape(_num_rows(encoder), -1))
    return torch.stack(maps)


class _Attended:
    """A hook on attention layers that keeps the last one's matrix, or multiplies them all."""

    def __init__(self, *, rollout: bool) -> None:
        self.rollout = rollout
        self.matrix_QQ: Tensor | None = None

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(layer, Attention)
        mask = named.get("attn_mask", inputs[1] if len(inputs) > 1 else None)
        matrix_QQ = attention_probability(layer, inputs[0], mask).mean(dim=1)[0].float()
        if self.rollout:
            matrix_QQ = (matrix_QQ + torch.eye(len(matrix_QQ), device=matrix_QQ.device)) / 2
            matrix_QQ = matrix_QQ if self.matrix_QQ is None else matrix_QQ @ self.matrix_QQ
        self.matrix_QQ = matrix_QQ


def attention_probability(layer: Attention, tokens_BQD: Tensor, sees_B1QQ: Tensor | None = None) -> Tensor:
    """Return probability_BHQQ of a layer of timm's, whose fused path does not give it out; H are its heads.

    Args:
        layer: The layer.
        tokens_BQD: Its input.
        sees_B1QQ: bool, which tokens (last) each token attends to; all of them by default.
    """
    rows, tokens, _ = tokens_BQD.shape
    three = layer.qkv(tokens_BQD).reshape(rows, tokens, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
    query, key = layer.q_norm(three[0]), layer.k_norm(three[1])
    score_BHQQ = (query * layer.scale) @ key.transpose(-2, -1)
    if sees_B1QQ is not None:
        score_BHQQ = score_BHQQ.masked_fill(~sees_B1QQ, -torch.inf)
    probability_BHQQ: Tensor = score_BHQQ.softmax(dim=-1)
    return probability_BHQQ


def _query_weights(model: ECGClassifier | ECGEncoder, tokens_1ND: Tensor) -> Tensor:
    """Return query_N, the share of each token in what the logits are made of."""
    if isinstance(model, ECGClassifier) and isinstance(model.head, Attentive):
        head = model.head
        tokens_1ND = head.norm(tokens_1ND.to(head.query.dtype))
        _, weight_11N = head.attention(head.query, tokens_1ND, tokens_1ND, need_weights=True)
        weight_N: Tensor = weight_11N[0, 0].float()
        return weight_N
    number = tokens_1ND.shape[1]
    return torch.full((number,), 1 / number, device=tokens_1ND.device)


def _attention_layers(encoder: Encoder) -> list[Attention]:
    return [module for module in encoder.modules() if isinstance(module, Attention)]


def _join(map_BLS: Tensor, places: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the windows' maps on the recording's samples, the mean where they overlap, 0 where there is none."""
    total_LT, number_T = np.zeros(shape), np.zeros(shape[1])
    maps = map_BLS.cpu().numpy().astype(np.float64)
    for map_LS, (start, stop) in zip(maps, places, strict=True):
        step = np.arange(stop - start) * map_LS.shape[1] // (stop - start)
        total_LT[:, start:stop] += map_LS[:, step]
        number_T[start:stop] += 1
    joined: NDArray[np.float64] = total_LT / np.maximum(number_T, 1)
    return joined
