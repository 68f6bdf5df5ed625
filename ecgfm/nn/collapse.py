"""Figures that tell a collapsing encoder from one that learns.

Each is a plain function of tokens or features on one device, so that every objective can report it. With several
ranks each rank measures its own rows, and what is logged is the mean over ranks: not the figure of all rows together.

Everything is computed in float32 without autocast, and without a gradient.

Shapes: N tokens or features of any number of windows, B windows, K classes or codes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-5
"""Share of the tokens' norm below which a singular value is rounding."""


@torch.no_grad()
def effective_rank(tokens_ND: Tensor, most: int = 2048) -> Tensor:
    """Return exp of the entropy of the normalised singular values of centred tokens.

    Roy and Vetterli 2007, https://ieeexplore.ieee.org/document/7098875, definition 1. Between 1, all
    tokens on a line or in a point, and the lesser of D and N - 1. Evenly spaced tokens are taken when there are more
    than `most`.
    """
    tokens_ND = _spaced(tokens_ND, most)
    with torch.autocast(tokens_ND.device.type, enabled=False):
        values = torch.linalg.svdvals(tokens_ND - tokens_ND.mean(dim=0))
    # Tokens that are all the same leave float32's rounding after centring, which has full rank.
    values = torch.where(values > ROUNDING * tokens_ND.norm(), values, 0.0)
    share = values / values.sum().clamp(min=torch.finfo(torch.float32).tiny)
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank


@torch.no_grad()
def dimension_std(tokens_ND: Tensor) -> Tensor:
    """Return std_D, the standard deviation of each dimension over the tokens; 0 for a single token.

    A collapsed encoder's are all 0; a dimension that died alone shows in the least of them.
    """
    tokens_ND = tokens_ND.float()
    return tokens_ND.std(dim=0, correction=min(1, len(tokens_ND) - 1))


@torch.no_grad()
def alignment(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    """Return the mean squared distance of two views of the same things, both scaled to length 1.

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242, section 4.1 with alpha = 2. Between 0, the same direction,
    and 4, the opposite one; 2 for directions that have nothing to do with each other. It is 0 also when everything
    has collapsed: read it beside `uniformity`.
    """
    return (_unit(one_ND) - _unit(other_ND)).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(features_ND: Tensor, most: int = 2048) -> Tensor:
    """Return the logarithm of the mean of exp(-2 d^2) over all pairs of features, scaled to length 1.

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242, section 4.1 with t = 2; d is the distance of a pair. It is 0
    when all features have one direction, and about -4 when they are spread evenly over a sphere of many dimensions.
    Features are not centred first, as in the paper: a direction that all share brings it near 0. Evenly spaced features
    are taken when there are more than `most`; 0 for a single one.
    """
    unit_ND = _unit(_spaced(features_ND, most))
    if len(unit_ND) < 2:
        return unit_ND.new_zeros(())
    with torch.autocast(unit_ND.device.type, enabled=False):
        # Of unit vectors d^2 is 2 - 2 cos: one product instead of N x N x D differences.
        square_NN = (2.0 - 2.0 * unit_ND @ unit_ND.T).clamp(min=0.0)
    first, second = torch.triu_indices(len(unit_ND), len(unit_ND), offset=1, device=unit_ND.device)
    pairs = -2.0 * square_NN[first, second]
    spread: Tensor = pairs.logsumexp(dim=0) - torch.log(torch.tensor(float(len(pairs)), device=pairs.device))
    return spread


@torch.no_grad()
def feature_figures(features_BD: Tensor) -> dict[str, Tensor]:
    """Return `feature_std`, `feature_rank` and `uniformity` of pooled features, as every objective logs them."""
    return {
        "feature_std": dimension_std(features_BD).mean(),
        "feature_rank": effective_rank(features_BD),
        "uniformity": uniformity(features_BD),
    }


@torch.no_grad()
def target_entropy(target_BK: Tensor) -> Tensor:
    """Return the mean entropy of softmax targets, as a share of log K, which is that of even ones.

    0 when every target is one class, 1 when no target prefers any: both ends are a collapse of a method that learns
    from targets of its own making (Caron et al. 2021, https://arxiv.org/abs/2104.14294, section 5.3).

    Args:
        target_BK: Probabilities; each row sums to 1.
    """
    return _share_of_even(target_BK.float()).mean()


@torch.no_grad()
def usage_entropy(target_BK: Tensor) -> Tensor:
    """Return the entropy of the mean target, as a share of log K: 0 when all windows have the same one class.

    Args:
        target_BK: Probabilities, or one-hot codes; each row sums to 1.
    """
    return _share_of_even(target_BK.float().mean(dim=0))


def _share_of_even(probability: Tensor) -> Tensor:
    classes = probability.shape[-1]
    assert classes > 1, "the entropy of one class says nothing"
    entropy: Tensor = torch.special.entr(probability).sum(dim=-1)
    return entropy / torch.log(torch.tensor(float(classes), device=probability.device))


def _unit(tokens_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(tokens_ND.float(), dim=1)


def _spaced(tokens_ND: Tensor, most: int) -> Tensor:
    return tokens_ND[:: max(1, -(-len(tokens_ND) // most))].float()
