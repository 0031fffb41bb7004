"""Convolutions on a GPU: every candidate agrees at the sizes of networks, and sums of weights follow the weights."""

import pytest
import torch
import torch.nn.functional as F

import fastdiff
from fastdiff.runtime import agreement

pytestmark = pytest.mark.only_gpu
conv2d = fastdiff.ops.conv2d
SHAPES = [  # x, outputs, taps, and what is particular
    ((2, 320, 64, 64), 320, 3, {}),
    ((2, 1280, 8, 8), 1280, 3, {}),
    ((1, 128, 256, 256), 128, 3, {}),
    ((2, 320, 32, 32), 320, 3, dict(stride=2)),
    ((2, 640, 32, 32), 640, 3, dict(upsample=2)),
    ((2, 1280, 8, 8), 1280, 3, dict(upsample=2)),
    ((1, 70, 33, 31), 90, 3, dict(upsample=2)),
    ((2, 640, 32, 32), 320, 1, dict(padding=0)),
    ((1, 100, 31, 17), 72, 1, dict(padding=0)),
]


def last(*shape, dtype):
    x = torch.randn(shape, device="cuda", dtype=torch.float32).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize(("shape", "outputs", "taps", "options"), SHAPES, ids=str)
def test_every_candidate_agrees(shape, outputs, taps, options, followed, dtype):
    skips = [None, last(shape[0], 64, *shape[2:], dtype=dtype)] if taps == 1 else [None]
    for skip in skips:
        x, channels = last(*shape, dtype=dtype), shape[1] + (0 if skip is None else 64)
        weight = last(outputs, channels, taps, taps, dtype=dtype)
        a = conv2d.Arguments(x, skip, weight, torch.randn(outputs, device="cuda").to(dtype), **options)
        if followed:
            row = torch.randn(shape[0], outputs, device="cuda").to(dtype)
            a = a._replace(residual=last(*a.result_shape, dtype=dtype), channel_bias=row, activation="silu")
        a = agreement.random_like(a)
        exact, theirs = conv2d.plainly(agreement.widened(a), False), conv2d.plainly(a, False)
        names = []
        for candidate in conv2d.candidates(a):
            names.append(candidate.name)
            results = [candidate.run(a) for _ in range(2)]
            assert torch.equal(*results), candidate.name
            assert agreement.disagreement(results[0], theirs, exact) is None, candidate.name
        assert "torch" in names
        assert any(name.startswith("triton") for name in names) == (
            taps == 1 or "upsample" in options or outputs <= 128 or a.result_shape[2] <= 16
        )


@torch.no_grad()
@pytest.mark.parametrize("looped", [False, True])
def test_sums_of_weights_follow_the_weights(looped):
    """A network whose calls, or whose loop, are graphs that read or make the sums."""
    conv = torch.nn.Conv2d(64, 64, 3, padding=1).cuda().half().to(memory_format=torch.channels_last)

    class Upsampling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x, t):
            y = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            return F.avg_pool2d(y, 2)

    original, model = Upsampling().eval(), fastdiff.optimize(Upsampling().eval())
    x, t = torch.randn(2, 64, 24, 24, device="cuda").half(), torch.zeros(2, device="cuda").half()

    def run(model):
        if not looped:
            return model(x, t)
        return fastdiff.sample(model, x, schedule="scaled-linear", prediction="eps", steps=3, solver="ddim", seed=0)

    for factor in (1.0, 0.5, 3.0):
        conv.weight.mul_(factor)
        for _ in range(4):
            with fastdiff.use("reference"):
                theirs = run(original)
            torch.testing.assert_close(run(model), theirs, rtol=2e-2, atol=2e-2)
