"""What stands on an encoder to answer a question: one of four heads, from tokens and features to logits.

- `linear`: one layer on the features, which are standardised first where `standardise_` has been told how.
- `attentive`: one learned query attends to the tokens, one layer on what it gathers. The "linear" protocol of Weimann
  and Conrad 2024 (https://arxiv.org/abs/2410.13867; in their code the pooler is a cross-attention of one query).
- `mlp2`: two fully connected layers on the features (Nakamoto et al. 2021), standardised likewise.
- `concat`: the maximum and the mean of the tokens side by side, norm, dropout, a layer of `hidden`, norm, dropout, a
  layer (Strodthoff et al. 2020, https://arxiv.org/abs/2004.13701, and Verma et al. 2021: hidden 128, dropout 0.5, of
  which the first has half). Their norms are batch norms, over all ranks.

The last layer of all begins at zero: the first logits are 0 whatever the encoder gives, and say that nothing is known.

Shapes: B windows, N tokens, D width, H hidden, C labels.
"""

from __future__ import annotations

import abc
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ecgfm.errors import ConfigError
from ecgfm.nn.blocks import INIT_STD
from ecgfm.nn.norms import channel_norm

HeadKind = Literal["linear", "attentive", "mlp2", "concat"]
HIDDEN = {"mlp2": 256, "concat": 128}
"""Width of the hidden layer, where none is given."""


class Head(nn.Module, abc.ABC):
    """Tokens and features to logits."""

    @abc.abstractmethod
    def forward(self, tokens_BND: Tensor, features_BD: Tensor) -> Tensor:
        """Return logits_BC."""

    def standardise_(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Subtract a mean from the features and divide them by a deviation; heads with a norm of their own do not."""


class Standardise(nn.Module):
    """Features of mean 0 and deviation 1, once it has been told what they are.

    Features of one encoder may vary by 1, of another by 0.01: at one learning rate a layer on the latter learns a
    hundred times more slowly, and a comparison of the two would be one of their scales.

    Args:
        width: D.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("std_D", torch.ones(width))

    def set_(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Set what the features are. One that does not vary, beyond rounding, is not divided."""
        least = 1e-6 * mean_D.abs().clamp(min=float(std_D.max()))
        self.mean_D.copy_(mean_D)
        self.std_D.copy_(torch.where(std_D > least, std_D, 1.0))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return features_BD."""
        return (features_BD - self.mean_D) / self.std_D


class Linear(Head):
    """One layer on the features.

    Args:
        width: Of the features.
        labels: C.
        dropout: Before the layer.
    """

    def __init__(self, width: int, labels: int, *, dropout: float) -> None:
        super().__init__()
        self.standard = Standardise(width)
        self.dropout = nn.Dropout(dropout)
        self.out = _last(width, labels)

    def standardise_(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Take features of this mean and deviation to 0 and 1."""
        self.standard.set_(mean_D, std_D)

    def forward(self, tokens_BND: Tensor, features_BD: Tensor) -> Tensor:
        """Return logits_BC of the features."""
        logits_BC: Tensor = self.out(self.dropout(self.standard(features_BD)))
        return logits_BC


class Attentive(Head):
    """One query over the tokens, and one layer.

    Args:
        width: Of the tokens.
        labels: C.
        heads: Of the attention; must divide the width.
        dropout: Before the last layer.
    """

    def __init__(self, width: int, labels: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=INIT_STD))
        # Encoders without a last norm give tokens of any size, in which one step would take all the attention.
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.out = _last(width, labels)

    def forward(self, tokens_BND: Tensor, features_BD: Tensor) -> Tensor:
        """Return logits_BC of the tokens."""
        tokens_BND = self.norm(tokens_BND)
        query_B1D = self.query.expand(len(tokens_BND), -1, -1)
        gathered_B1D, _ = self.attention(query_B1D, tokens_BND, tokens_BND, need_weights=False)
        logits_BC: Tensor = self.out(self.dropout(gathered_B1D[:, 0]))
        return logits_BC


class TwoLayers(Head):
    """Two fully connected layers on the features.

    Args:
        width: Of the features.
        labels: C.
        hidden: H.
        dropout: Before each layer.
    """

    def __init__(self, width: int, labels: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.standard = Standardise(width)
        self.hidden = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.out = _last(hidden, labels)

    def standardise_(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Take features of this mean and deviation to 0 and 1."""
        self.standard.set_(mean_D, std_D)

    def forward(self, tokens_BND: Tensor, features_BD: Tensor) -> Tensor:
        """Return logits_BC of the features."""
        logits_BC: Tensor = self.out(self.hidden(self.standard(features_BD)))
        return logits_BC


class Concat(Head):
    """Maximum and mean of the tokens, and two layers with batch norm before each.

    Args:
        width: Of the tokens.
        labels: C.
        hidden: H.
        dropout: Before the last layer; before the first it is half of it.
    """

    def __init__(self, width: int, labels: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            channel_norm("batch", 2 * width),
            nn.Dropout(dropout / 2),
            nn.Linear(2 * width, hidden),
            nn.ReLU(),
            channel_norm("batch", hidden),
            nn.Dropout(dropout),
        )
        self.out = _last(hidden, labels)

    def forward(self, tokens_BND: Tensor, features_BD: Tensor) -> Tensor:
        """Return logits_BC of the tokens. All ranks must call it when they train."""
        both_BD = torch.cat([tokens_BND.amax(dim=1), tokens_BND.mean(dim=1)], dim=1)
        logits_BC: Tensor = self.out(self.hidden(both_BD))
        return logits_BC


def build_head(
    kind: HeadKind,
    width: int,
    labels: int,
    *,
    hidden: int | None = None,
    heads: int | None = None,
    dropout: float = 0.0,
) -> Head:
    """Return a new head with random weights, the last layer's zero.

    Args:
        kind: Which.
        width: Of tokens and features, D.
        labels: Logits, C.
        hidden: Width of the hidden layer of `mlp2` and `concat`.
        heads: Of attention; by default as many of 8 as divide the width.
        dropout: Share of the features that training leaves out.

    Raises:
        ConfigError: There is no such head, or a number that it cannot have.
    """
    if kind not in get_args(HeadKind):
        raise ConfigError(f"head {kind!r} is none of {', '.join(get_args(HeadKind))}")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must be 0 or more and below 1, got {dropout}")
    if labels < 1 or (hidden is not None and hidden < 1):
        raise ConfigError(f"a head needs at least one label and one hidden feature, got {labels} and {hidden}")
    if kind == "linear":
        return Linear(width, labels, dropout=dropout)
    if kind == "attentive":
        heads = heads or next(number for number in (8, 6, 4, 3, 2, 1) if width % number == 0)
        if width % heads:
            raise ConfigError(f"heads {heads} must divide the encoder's width {width}")
        return Attentive(width, labels, heads=heads, dropout=dropout)
    wide = hidden or HIDDEN[kind]
    build = TwoLayers if kind == "mlp2" else Concat
    return build(width, labels, hidden=wide, dropout=dropout)


def _last(width: int, labels: int) -> nn.Linear:
    layer = nn.Linear(width, labels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
