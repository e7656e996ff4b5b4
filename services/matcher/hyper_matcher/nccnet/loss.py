"""What the net is trained for: that a correlogram's peak stands out, and stands in the right place.

The weakly supervised loss wants the first peak of a correlogram to stand out from the second.

For a pair that shows the same tissue: -(P1 - P2), where P2 is the highest score outside a box round
P1. For a pair of unrelated images: P1, which is pushed down, so that the net cannot win by making
everything alike (Buniatyan et al. 2019, eqs. 2-4). No true location is needed.

The second stage uses the stack's own alignment as pseudo-truth: the consensus of many matches puts
a template within a few pixels of its place. The loss is the cross-entropy of that neighbourhood
against all other places; every wrong peak of a correlogram teaches, not the highest alone.

Features without contrast score 0 everywhere, where neither loss has a gradient; and for the first
loss that is hardly worse than what a new net has. `saturation` keeps nets from going there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyper_matcher.ncc_layer import normalized_cross_correlation


def peaks(correlograms: Tensor, exclusion: int) -> tuple[Tensor, Tensor]:
    """First and second peaks of (N, 1, Y, X) scores: two of (N,).

    Args:
        correlograms: scores.
        exclusion: half the edge of the box round P1 that P2 lies outside of, in places.
    """
    n, _, rows, columns = correlograms.shape
    flat = correlograms.reshape(n, -1)
    p1, at = flat.max(1)
    y, x = (at // columns)[:, None, None], (at % columns)[:, None, None]
    i = torch.arange(rows, device=flat.device)[None, :, None]
    j = torch.arange(columns, device=flat.device)[None, None, :]
    near = ((i - y).abs() <= exclusion) & ((j - x).abs() <= exclusion)
    p2 = flat.masked_fill(near.reshape(n, -1), -1.0).amax(1)
    return p1, p2


def pair_loss(
    search: list[Tensor],
    template: list[Tensor],
    related: Tensor,
    *,
    exclusion: int,
) -> Tensor:
    """Mean loss of a batch, over the levels given (one: the finest alone).

    Args:
        search: features of the search images, (N, 1, Y, X), finest level first.
        template: of the templates, (N, 1, y, x).
        related: (N,) bool: whether the pair shows the same tissue.
        exclusion: at the finest level; half of it at the next, and so on.
    """
    losses = []
    for level, (s, t) in enumerate(zip(search, template, strict=True)):
        scores = normalized_cross_correlation(s, t)
        p1, p2 = peaks(scores, max(1, exclusion >> level))
        losses.append(torch.where(related, p2 - p1, p1.abs()).mean())
    return torch.stack(losses).mean()


def saturation(responses: list[Tensor]) -> Tensor:
    """Mean square of what is beyond +-3, where tanh hardly tells responses apart.

    Args:
        responses: of the net before its tanh, (N, 1, Y, X), any number of levels.
    """
    return torch.stack([nn.functional.relu(r.abs() - 3).square().mean() for r in responses]).mean()


def place_loss(
    search: Tensor, template: Tensor, place: Tensor, *, tolerance: float, temperature: float
) -> Tensor:
    """Mean cross-entropy of finding each template near its place.

    Args:
        search: features (N, 1, Y, X).
        template: features (N, 1, y, x).
        place: (N, 2) offset of the template in the search image, in feature pixels.
        tolerance: radius of the neighbourhood that counts as right, in feature pixels.
        temperature: difference of scores that makes a place e times as likely.
    """
    scores = normalized_cross_correlation(search, template)
    n, _, rows, columns = scores.shape
    i = torch.arange(rows, device=scores.device)[None, :, None] - place[:, :1, None]
    j = torch.arange(columns, device=scores.device)[None, None, :] - place[:, 1:, None]
    near = (i.square() + j.square() <= tolerance**2).reshape(n, -1)
    logits = scores.reshape(n, -1) / temperature
    right = logits.masked_fill(~near, -torch.inf).amax(1)
    wrong = logits.masked_fill(near, -torch.inf).logsumexp(1)
    return nn.functional.softplus(wrong - right).mean()
