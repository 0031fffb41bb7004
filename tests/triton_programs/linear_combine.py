"""linear_combine's kernel: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools
import math

import torch
from checks import assert_fits

from fastdiff.kernels.linear_combine import launch_step, linear_combine, make_table
from fastdiff.ops import linear_combine as op
from fastdiff.process.noise import CounterNoise

reference = op.plain


def numbers() -> None:
    torch.manual_seed(0)
    tables, sizes = [(1, 1), (2, 3), (5, 4), (8, 16)], [0, 1, 1000, 1024, 2049]
    for (m, k), size, dtype in itertools.product(tables, sizes, [torch.float32, torch.float16, torch.float64]):
        c = torch.randn(m, k, dtype=torch.float64).tolist()
        xs = [torch.randn(size, dtype=torch.float64).to(dtype) for _ in range(k)]
        exact = reference(c, [x.double() for x in xs])
        sums = [sum(abs(a) * x.double().abs() for a, x in zip(row, xs)) for row in c]
        scale = float(torch.stack(sums).max()) if size else 0.0
        bound = scale * (k * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps)
        for ours, want in zip(linear_combine(c, xs), exact, strict=True):
            assert ours.dtype == dtype
            assert ours.shape == want.shape
            error = float((ours.double() - want).abs().max()) if size else 0.0
            assert error <= bound, (m, k, size, dtype, error, bound)
    view = torch.randn(6, 8).t()
    assert torch.allclose(linear_combine([[2.0]], [view])[0], 2 * view)


def steps() -> None:
    """Products and sums rounded one by one, and the CPU's own noise: the same bits."""
    torch.manual_seed(0)
    B, C, U, N = range(4)
    counter = CounterNoise((2**64 - 5, 3), (2**33 + 1, 0))
    types = [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float64)]
    kinds_of = [[B, C], [C, U, B, N], [N, B, N]]
    for (state, model), kinds, outputs, sizes in itertools.product(types, kinds_of, [1, 2, 3], [(7,), (3, 25, 16)]):
        shape = (2, *sizes)
        values = [torch.randn(shape, dtype=torch.float64).to(state if kind == B else model) for kind in kinds]
        for k, kind in enumerate(kinds):
            if kind == N:
                values[k] = counter.draw(k, shape, state)
        c = torch.randn(len(kinds), outputs, dtype=torch.float64).to(state)
        padded = torch.nn.functional.pad(c, (0, 1 if outputs == 3 else 0)).contiguous()
        given = dict(zip(kinds, values))
        numbers = [k if kind == N else v.data_ptr() for k, (kind, v) in enumerate(zip(kinds, values))]
        states = [torch.full(shape, float("nan"), dtype=state) for _ in range(outputs)]
        copies = [torch.full((2, *shape), float("nan"), dtype=model) for _ in range(outputs)]
        addresses = [[s.data_ptr(), k[0].data_ptr(), k[1].data_ptr()] for s, k in zip(states, copies)]
        addresses[-1][0] = 0
        keys = torch.tensor([[s - (s >> 63 << 64), n] for s, n in zip(counter.seeds, counter.samples)])
        for bad in (False, True):
            if bad:
                values[kinds.index(B)].view(-1)[-1] = float("inf")
            broken = torch.zeros(1, dtype=torch.int32)
            launch_step(
                make_table(kinds, numbers, addresses, c.device),
                padded,
                keys,
                broken,
                given.get(C, values[0].to(model)),
                given.get(U, values[0].to(model)),
                batch=2,
                elements=math.prod(sizes),
                num_inputs=len(kinds),
                num_outputs=outputs,
                state=state,
                noisy=N in kinds,
            )
            assert broken.item() == bad
            if bad:
                continue
            expected = reference(c.t().tolist(), [v.to(state) for v in values])
            for m, want in enumerate(expected):
                assert states[m].isnan().all() if m == outputs - 1 else torch.equal(states[m], want)
                assert all(torch.equal(copy, want.to(model)) for copy in copies[m])


def compiles(target: str) -> None:
    from fastdiff.kernels.linear_combine.variants import step

    cases = [*itertools.product(("fp32", "fp16"), (1, 2), (False, True)), ("fp64", 8, True), ("bf16", 8, True)]
    for case in cases:
        launch = step(target, *case)
        assert_fits(launch, case)
        assert "fma" not in launch.compile().asm.get("ptx", ""), case  # rounded one by one
