"""What only a GPU can show: `python -m pytest tests/gpu` on a machine that has one. Elsewhere all of it is skipped."""

import math

import pytest
import torch
from conftest import assert_no_worse
from small_network import Net

import fastdiff
from fastdiff import ops, sample
from fastdiff.engine.steps import NativeSteps, TritonSteps
from fastdiff.noise import CounterNoise
from fastdiff.ops import linear_combine
from fastdiff.runtime import cuda, graphs, triton
from fastdiff.schedules import VPDiscrete

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
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


def _small_cases():
    if not torch.cuda.is_available() or triton.unavailable() is not None:
        return []
    from fastdiff.bench.gpu import cases

    return [*cases("cuda", small=True), *cases("cuda")]


@pytest.mark.parametrize("case", _small_cases(), ids=str)
def test_kernels_err_no_more_than_torch(case):
    from fastdiff.bench.gpu import check

    check(case)


ROW = (2, 1, 72)
OPERATORS = {
    "attention": (ops.attention, [(2, 3, 65, 40), (2, 3, 77, 40), (2, 3, 77, 40)]),
    "attention of one head": (ops.attention, [(1, 1, 130, 256)] * 3),
    "group_norm_silu": (lambda x, w, b: ops.group_norm_silu(x, 4, w, b), [(2, 8, 9, 7), (8,), (8,)]),
    "group_norm_silu in parts": (lambda x, w, b: ops.group_norm_silu(x, 2, w, b), [(1, 8, 301, 99), (8,), (8,)]),
    "ada_layer_norm": (ops.ada_layer_norm, [(2, 70, 72), ROW, ROW]),
    "ada_layer_norm of rows": (ops.ada_layer_norm, [(2, 30, 72), (2, 30, 72), ROW]),
    "linear_combine": (lambda x, y: ops.linear_combine([[0.5, -2.0]], [x, y])[0], [(3, 1000), (3, 1000)]),
}


@pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_operators_and_their_gradients(name, dtype):
    function, shapes = OPERATORS[name]
    torch.manual_seed(0)
    tensors = [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]

    def run(backend, dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
        with fastdiff.use(backend):
            out = function(*leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves, (out.detach() * 0 + 1))]

    ours, theirs, exact = run("triton", dtype), run("reference", dtype), run("reference", torch.float64)
    for mine, other, want in zip(ours, theirs, exact):
        # A result sums at most as many terms as there are numbers.
        floor = float(want.abs().max()) * torch.finfo(dtype).eps
        floor += max(t.numel() for t in tensors) ** 0.5 * torch.finfo(torch.float32).eps * float(want.abs().max())
        assert_no_worse(mine, other, want, floor=floor)


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
