"""A mask sought for one window of sound: what the network needs to hear the class, and misses if it is taken away.

'Meaningful perturbation' (Fong & Vedaldi 2017, arXiv 1704.03296; Fong, Patrick & Vedaldi 2019, arXiv 1910.08485): the
mask m is a number per cell of a coarse grid, and gradients through the network itself find it. Mel power times m^2 is
the evidence, mel power times (1 - m)^2 the remainder: what cnn.spectrum.split makes of the sound, as the picture shows
it. Both are heard in one batch; Adam lowers

    KEEP * -log p(label | evidence) - log(1 - p(label | remainder)) + AREA * mean of m

The coarse grid, the noise and the shifts are there so that the mask finds what sounds like the class to any listener,
and not a pattern that fools this one network.

F mel bins, T frames.
"""

import numpy as np
import torch
import torch.nn.functional as nnf

from cnn.classifier import Classifier

GRID = (16, 32)  # bins x frames of the mask: 8 mel bins by 0.16 s in the shipped network's picture
STEPS = 10  # a forward and a backward pass of two windows each
RATE = 0.7  # Adam's, in units of the mask's logit: 8.7 dB in the part that a cell is being taken from
LIMIT = 8.0  # of the logits: a cell is at most 70 dB weaker in one part than in the other
KEEP = 5.0  # weight of the evidence beside the remainder
AREA = 2.0  # weight of the mask's area
START = 1.0  # logit of every cell: the evidence is three quarters of the sound, and what the class can do without goes
NOISE = 0.5  # standard deviation of what is added to the logits, drawn anew at every step
SMOOTH = 4  # passes over the gradient: a step turns regions on and off, not single cells
SHIFT = 8  # frames, by up to so many of which the parts are moved round in the window, drawn anew as well


def sought_mask(
    classifier: Classifier,
    waveform: np.ndarray,
    label: str,
    *,
    against: str | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> np.ndarray:
    """One window (samples,) -> the mask (F, T) float32 in 0..1 of the evidence for `label`, or for it rather than for
    `against`: then p is the probability of the one among the two. Raises ValueError for an unknown label."""
    for name in filter(None, (label, against)):
        if name not in classifier.labels:
            raise ValueError(f"label {name!r} is unknown; known are {', '.join(classifier.labels)}")
    row = classifier.labels.index(label)
    other = None if against is None else classifier.labels.index(against)
    drawn = torch.Generator().manual_seed(seed)
    with classifier.alone() as (power_of, listen):
        power = power_of(waveform)
        grid = torch.full((1, 1, *GRID), START, device=power.device, requires_grad=True)  # logits
        adam = torch.optim.Adam([grid], lr=RATE, betas=(0.8, 0.95))  # forgets fast: there are few steps
        for _ in range(steps):
            noise = NOISE * torch.randn(grid.shape, generator=drawn).to(power.device)
            shift = int(torch.randint(-SHIFT, SHIFT + 1, (), generator=drawn))
            mask = _mask(grid + noise, power.shape[-2:])
            parts = torch.cat([power * mask**2, power * (1 - mask) ** 2]).roll(shift, -1)
            odds = _odds(listen(parts), row, other)  # (2,) of the evidence and of the remainder
            loss = -KEEP * nnf.logsigmoid(odds[0]) - nnf.logsigmoid(-odds[1]) + AREA * mask.mean()
            (slope,) = torch.autograd.grad(loss, [grid])
            grid.grad = _smooth(slope)  # Adam moves every cell as far, those that hardly matter too: not in disorder
            adam.step()
            with torch.no_grad():
                grid.clamp_(-LIMIT, LIMIT)
        return _mask(grid.detach(), power.shape[-2:])[0].cpu().numpy()


def _mask(grid: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Logits (1, 1, *GRID) -> mask (1, F, T): straight lines between logits are straight lines in dB."""
    return nnf.interpolate(grid, tuple(size), mode="bilinear", align_corners=True)[:, 0].sigmoid()


def _smooth(values: torch.Tensor) -> torch.Tensor:
    """(1, 1, *GRID) -> the same, the binomial filter 1 2 1 laid over both axes SMOOTH times."""
    weights = values.new_tensor([1.0, 2.0, 1.0]) / 4
    for _ in range(SMOOTH):
        values = nnf.conv2d(nnf.pad(values, (1, 1, 1, 1), mode="replicate"), torch.outer(weights, weights)[None, None])
    return values


def _odds(logits: torch.Tensor, row: int, other: int | None) -> torch.Tensor:
    """(B, N) -> (B,): log of p / (1 - p) of the class among all, or among itself and the other."""
    if other is not None:
        return logits[:, row] - logits[:, other]
    rest = logits.clone()
    rest[:, row] = -torch.inf
    return logits[:, row] - rest.logsumexp(dim=1)
