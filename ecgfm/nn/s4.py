"""Diagonal state spaces (S4D): linear recurrences over time, computed as one long convolution.

Gu et al. 2022, https://arxiv.org/abs/2206.11893. A channel holds a few decaying oscillations x, driven by its input u:
x' = A x + B u, y = Re(C x) + D u, sampled by zero-order hold with a step that the channel learns too. Over a window
this is a convolution with the kernel K[l] = 2 Re(sum_h C_h (exp(A_h dt) - 1) / A_h exp(A_h dt l)), done by FFT.

Paper says: A = -exp(a) + i b, which cannot grow; S4D-Lin begins at -1/2 + i pi h, S4D-Inv at
-1/2 + i (N / pi) (N / (2 h + 1) - 1); conjugate pairs, so that a state of N has N / 2 of them; dt begins evenly in
log(0.001) .. log(0.1); C normal; a learning rate of at most 0.001 without decay for A, B and dt.
Code says: B is 1, since only its product with C matters; D normal; both directions share A and dt and have a C each.
Ours: the same. The optimizer decays only linear layers and convolutions, so nothing here; it has one learning rate.

Everything here is computed in float32, also under autocast: an FFT in bfloat16 is none, and angles reach hundreds of
radians. Of weights of 16 bits, which round dt by up to 3 %, the masters beside them learn on. The FFT of a window
mixes all samples, so a later one changes what lies before it by rounding, about 1e-6 of its size.

Shapes: B windows, D channels, H conjugate pairs of a state, N steps, R directions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Begin = Literal["lin", "inv"]
"""Where the frequencies begin: evenly, or inversely (section 4.3 of the paper)."""
DECAY = 0.5
"""Rate of decay that every oscillation begins with."""
STEP = (0.001, 0.1)
"""Bounds of the time steps that channels begin with: with that decay they remember some 20 to 2000 steps."""


class StateSpace(nn.Module):
    """A diagonal state space for each channel.

    Args:
        width: Channels, D.
        state: Real size of a channel's state, even.
        causal: Whether a step sees those before it and itself only, and not those after it too.
        begin: Where the frequencies begin.
    """

    def __init__(self, width: int, state: int, *, causal: bool, begin: Begin = "lin") -> None:
        super().__init__()
        assert state % 2 == 0, state
        pairs = state // 2
        low, high = (math.log(step) for step in STEP)
        count_H = torch.arange(pairs, dtype=torch.float64)
        frequency_H = math.pi * count_H if begin == "lin" else state / math.pi * (state / (2 * count_H + 1) - 1)
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(width))
        self.log_decay = nn.Parameter(torch.full((width, pairs), math.log(DECAY)))
        self.frequency = nn.Parameter(frequency_H.float().repeat(width, 1))
        # Real and imaginary part, each of half the variance.
        self.readout = nn.Parameter(math.sqrt(0.5) * torch.randn(1 if causal else 2, width, pairs, 2))
        self.skip = nn.Parameter(torch.randn(width))

    def kernels(self, steps: int) -> Tensor:
        """Return kernel_RDN, float32: what an impulse leaves behind; of both directions, where there are two."""
        # Real arithmetic, whose gradients and compiled form are plain; elementwise, which autocast leaves alone.
        step_D1 = self.log_step.float().exp()[:, None]
        decay_DH, frequency_DH = -self.log_decay.float().exp(), self.frequency.float()
        fall_DH, turn_DH = decay_DH * step_D1, frequency_DH * step_D1
        # (exp(A dt) - 1) / A, without the difference of numbers that are almost the same.
        real_DH = fall_DH.expm1() * turn_DH.cos() - 2.0 * (turn_DH / 2.0).sin().square()
        imaginary_DH = fall_DH.exp() * turn_DH.sin()
        size_DH = decay_DH.square() + frequency_DH.square()
        held_DH = (real_DH * decay_DH + imaginary_DH * frequency_DH) / size_DH
        held_too_DH = (imaginary_DH * decay_DH - real_DH * frequency_DH) / size_DH
        out_RDH, out_too_RDH = self.readout.float().unbind(-1)
        weight_RDH = out_RDH * held_DH - out_too_RDH * held_too_DH
        weight_too_RDH = out_RDH * held_too_DH + out_too_RDH * held_DH
        time_N = torch.arange(steps, device=step_D1.device, dtype=torch.float32)
        envelope_DHN = 2.0 * (fall_DH[..., None] * time_N).exp()
        angle_DHN = turn_DH[..., None] * time_N
        cosine_DHN, sine_DHN = envelope_DHN * angle_DHN.cos(), envelope_DHN * angle_DHN.sin()
        kernel_RDHN = weight_RDH[..., None] * cosine_DHN - weight_too_RDH[..., None] * sine_DHN
        return kernel_RDHN.sum(dim=2)

    def forward(self, values_BDN: Tensor) -> Tensor:
        """Return values_BDN, float32."""
        values_BDN = values_BDN.float()
        steps = values_BDN.shape[-1]
        kernel_RDN = self.kernels(steps)
        kernel_DN = kernel_RDN[0]
        if len(kernel_RDN) == 2:
            # Round the end of the circle: what is at -1 - l reaches step n from step n + 1 + l.
            kernel_DN = torch.cat([kernel_DN, kernel_RDN[1].flip(-1)], dim=-1)
        # Twice as long, so that nothing comes round the circle that should not.
        spectrum = torch.fft.rfft(values_BDN, n=2 * steps) * torch.fft.rfft(kernel_DN, n=2 * steps)
        mixed_BDN: Tensor = torch.fft.irfft(spectrum, n=2 * steps)[..., :steps]
        return mixed_BDN + self.skip.float()[:, None] * values_BDN


class S4Block(nn.Module):
    """A state space over time, GELU, a gated linear layer over channels, and a layer norm after the sum with the input.

    Args:
        width: Features, D.
        state: Of each feature.
        causal: Whether a step sees none after it.
        begin: Where the frequencies begin.
    """

    def __init__(self, width: int, state: int, *, causal: bool, begin: Begin = "lin") -> None:
        super().__init__()
        self.space = StateSpace(width, state, causal=causal, begin=begin)
        self.mix = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return tokens_BND."""
        past_BND = functional.gelu(self.space(tokens_BND.transpose(1, 2)).transpose(1, 2))
        # The weight's type: float32, but where weights are of 16 bits.
        mixed_BND = functional.glu(self.mix(past_BND.to(self.mix.weight.dtype)), dim=-1)
        normed: Tensor = self.norm(tokens_BND + mixed_BND)
        return normed
