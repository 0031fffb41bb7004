"""The sampling loop on the device: steps have the bits of the CPU, graphs are as exact as the reference."""

import math

import pytest
import torch
from conftest import assert_no_worse
from small_network import Net

import fastdiff
from fastdiff import sample
from fastdiff.engine.steps import NativeSteps, TritonSteps
from fastdiff.noise import CounterNoise
from fastdiff.ops import linear_combine
from fastdiff.runtime import cuda, graphs, triton
from fastdiff.schedules import VPDiscrete

pytestmark = pytest.mark.only_gpu
STEPS = [
    pytest.param(
        NativeSteps, marks=pytest.mark.skipif(cuda.unavailable() is not None, reason=f"CUDA: {cuda.unavailable()}")
    ),
    pytest.param(
        TritonSteps, marks=pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))
    ),
]
DEVICE = "cuda"
BUFFER, COND, UNCOND, NOISE = range(4)
OPTIONS = dict(schedule=VPDiscrete.linear(), prediction="eps", steps=6)


@pytest.mark.parametrize("made", STEPS)
@pytest.mark.parametrize("model", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kinds", [[BUFFER, COND], [COND, UNCOND, BUFFER, NOISE], [NOISE, BUFFER, NOISE]], ids=str)
def test_a_step_has_the_bits_of_the_cpu(made, model, kinds):
    state, shape = torch.promote_types(model, torch.float32), (3, 4, 33, 31)
    counter = CounterNoise((2**64 - 5, 7, 7), (2**33, 0, 1))
    values = [torch.randn(shape, dtype=torch.float64).to(state if kind == BUFFER else model) for kind in kinds]
    values = [counter.draw(k, shape, state) if kind == NOISE else v for k, (kind, v) in enumerate(zip(kinds, values))]
    coefficients = torch.randn(len(kinds), 2, dtype=torch.float64).to(state)
    expected = linear_combine.plain(coefficients.t().tolist(), [v.to(state) for v in values])

    held = [v.to(DEVICE) for v in values]
    keys = torch.tensor([[s - (s >> 63 << 64), n] for s, n in zip(counter.seeds, counter.samples)]).to(DEVICE)
    broken, table = torch.zeros(1, dtype=torch.int32, device=DEVICE), coefficients.to(DEVICE)
    outputs = [torch.full(shape, math.nan, dtype=state, device=DEVICE) for _ in range(2)]
    copies = [torch.full(shape, math.nan, dtype=model, device=DEVICE) for _ in range(2)]
    engine = made(state, model, shape[0], math.prod(shape[1:]), keys, broken)
    places = [k if kind == NOISE else v.data_ptr() for k, (kind, v) in enumerate(zip(kinds, held))]
    engine.add(kinds, places, [[o.data_ptr(), c.data_ptr(), 0] for o, c in zip(outputs, copies)], table)
    given = dict(zip(kinds, held))
    engine.run(0, given.get(COND), given.get(UNCOND))
    for output, copy, want in zip(outputs, copies, expected):
        assert torch.equal(output.cpu(), want)
        assert torch.equal(copy.cpu(), want.to(model))
    assert broken.item() == 0


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-2", "ddpm", "heun"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_graphs_are_as_exact_as_the_reference(solver, dtype):
    net, x = Net(dtype).to(DEVICE), torch.randn(2, 3, 32, 32, dtype=dtype)
    for seed in range(4):
        shift = torch.tensor([0.1 * seed, -0.2], dtype=dtype)

        def run(net, x, shift=shift, seed=seed):
            conditions = dict(cond={"shift": shift.to(x)}, uncond={"shift": torch.zeros_like(shift).to(x)})
            return sample(net, x, guidance=2.0, solver=solver, seed=seed, **conditions, **OPTIONS).cpu()

        ours = run(net, x.to(DEVICE))
        with fastdiff.use("reference"):
            theirs, exact = run(net, x.to(DEVICE)), run(Net(dtype).double(), x.double())
        assert_no_worse(ours, theirs, exact, floor=float(exact.abs().max()) * torch.finfo(dtype).eps)
    assert graphs.explain(net) == ["a CUDA graph"]


def test_a_model_that_waits_for_the_device_is_launched():
    class Waits(Net):
        def forward(self, x, t):
            return super().forward(x, t) * (1 + 0 * float(x.abs().max()))

    net = Waits().to(DEVICE)
    first = sample(net, (2, 3, 8, 8), seed=0, **OPTIONS)
    with pytest.warns(graphs.GraphWarning):
        assert torch.equal(sample(net, (2, 3, 8, 8), seed=0, **OPTIONS), first)
    assert torch.equal(sample(net, (2, 3, 8, 8), seed=0, **OPTIONS), first)


def test_results_of_replays_are_the_callers():
    net = Net().to(DEVICE)
    results = [sample(net, (1, 3, 8, 8), seed=seed, **OPTIONS) for seed in range(4)]
    again = [sample(net, (1, 3, 8, 8), seed=seed, **OPTIONS) for seed in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(results, again))
