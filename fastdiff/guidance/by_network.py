"""Gradients that steer a sample with another network: functions of (x, t) for `fastdiff.Classifier` and `Gradients`.

Semantic and style guidance: Liu et al. 2021, More Control for Free! Image Synthesis with Semantic Diffusion Guidance.
CLIP guidance: Nichol et al. 2021, GLIDE, Section 2.4. The networks are trained on noisy data, and get x and the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect
from fastdiff.process.noise import CounterNoise, NoiseFunction
from fastdiff.process.schedules import Point, Schedule, VPDiscrete, get_schedule
from fastdiff.runtime.dispatcher import differentiable

Function = Callable[[Tensor, Tensor], Tensor]


def gradient_of(function: Function) -> Function:
    """The gradient of sum(function(x, t)) with respect to x, for a differentiable function of x (B, ...) and t (B,)."""

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x, t = differentiable(x).detach().requires_grad_(), differentiable(t)
            return torch.autograd.grad(function(x, t).sum(), x)[0]

    return gradient


def text_similarity(features: Function, text: Tensor, *, eps: float = 1e-12) -> Function:
    """Gradient of the cosine of the picture's features and a text's (Liu et al. 2021, Eq. 8; GLIDE, Eq. 4: the scale is
    then that of the guidance times CLIP's exp(logit_scale)).

    features(x, t): (B, D). text: (B or 1, D), of the same CLIP-like model. eps: added to the norms.
    """
    if not isinstance(text, Tensor) or text.ndim != 2:
        raise TypeError(f"text must be features (B or 1, D), got {arguments.described(text)}")
    return gradient_of(lambda x, t: _cosine(features(x, t), text, eps))


def image_similarity(
    features: Function,
    reference: Tensor,
    schedule: Schedule | str,
    *,
    seed: int = 0,
    noise: NoiseFunction | None = None,
    eps: float = 1e-12,
) -> Function:
    """Gradient of the cosine of the features of x and of a reference picture, noised to the same time (Liu et al. 2021,
    Eq. 10).

    features(x, t): (B, D). reference: (B or 1, ...) like x. schedule: of the run. The noise of each call in a run is
    another, from seed, or noise(call) like the reference.
    """
    noised = _Noised(reference, schedule, seed, noise)

    def similarity(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            target = features(noised(t).to(x), t[: len(reference)])
        return _cosine(features(x, t), target, eps)

    return gradient_of(similarity)


def style_similarity(
    layers: Callable[[Tensor, Tensor], Sequence[Tensor]],
    reference: Tensor,
    schedule: Schedule | str,
    *,
    seed: int = 0,
    noise: NoiseFunction | None = None,
    across_batch: bool = False,
) -> Function:
    """Gradient of minus the mean squared difference of the Gram matrices of x and of a reference picture, noised to the
    same time (Liu et al. 2021, Eq. 12).

    layers(x, t): feature maps (B, C, H, W), of which the mean is taken. reference, schedule, seed, noise: as of
    `image_similarity`. Gram matrices are F F^T / (C H W), one a picture, as in the paper. across_batch: the published
    code's, one matrix over the channels of all pictures, F (B C, H W), F F^T / (B C H W); its scale has a further 1e10.
    """
    noised = _Noised(reference, schedule, seed, noise)

    def gram(f: Tensor) -> Tensor:
        f = f.flatten(2)
        f = f.reshape(1, -1, f.shape[-1]) if across_batch else f
        return f @ f.mT / (f.shape[1] * f.shape[2])

    def similarity(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            targets = layers(noised(t).to(x), t[: len(reference)])
        pairs = list(zip(layers(x, t), targets))
        distances = [(gram(f) - gram(target)).square().flatten(1).mean(1) for f, target in pairs]
        return -torch.stack(distances).mean(0)

    return gradient_of(similarity)


class _Noised:
    """A picture noised to the time of each call; a run's noises begin anew where the time does not fall."""

    def __init__(self, reference: Tensor, schedule: Schedule | str, seed: int, noise: NoiseFunction | None) -> None:
        self.reference, self.schedule = arguments.state("reference", reference), get_schedule(schedule)
        counter, like = CounterNoise.of(seed, len(reference)), torch.promote_types(reference.dtype, torch.float32)
        self.noise = noise or (lambda k: counter.draw(k, reference.shape, like).to(reference.device))
        self.calls, self.last = 0, 0.0

    def __call__(self, t: Tensor) -> Tensor:
        time = float(t[0])
        self.calls, self.last = (self.calls + 1 if time < self.last else 0), time
        p = point_of(self.schedule, time)
        return p.alpha * self.reference + p.sigma * self.noise(self.calls)


def point_of(schedule: Schedule, time: float) -> Point:
    """The point where a network of this schedule is given that time. Raises ValueError where that cannot be said."""
    t = (time + 1) / schedule.num_steps if isinstance(schedule, VPDiscrete) else time
    expect(abs(schedule.model_time(t) - time) < 1e-6 * max(1, abs(time)), f"{schedule!r} has no point for {time!r}")
    return schedule.point(t)


def _cosine(a: Tensor, b: Tensor, eps: float) -> Tensor:
    a, b = (z / (z.norm(dim=-1, keepdim=True) + eps) for z in (a, b.to(a)))
    return (a * b).sum(-1)
