"""linear_combine against float64: every instruction set, odd sizes, views, aliasing, tables at their limits."""

import numpy as np
import pytest
import torch
from conftest import assert_no_worse
from torch.autograd import forward_ad

import fastdiff
from fastdiff.ops.linear_combine import Arguments, linear_combine
from fastdiff.runtime.native import core

reference = linear_combine.plain


def supports(coefficients, tensors):
    flat = [c for column in zip(*coefficients) for c in column]
    return linear_combine.unsupported(Arguments(tensors, flat, len(coefficients)))


EPS = {torch.float32: torch.finfo(torch.float32).eps, torch.float64: torch.finfo(torch.float64).eps}
SHAPES = [(1,), (7,), (0,), (3, 0, 5), (2, 3, 5, 7), (1, 4, 64, 64), (1023,), (8, 4, 128, 128)]
TABLES = [(1, 1), (2, 3), (1, 16), (3, 2), (4, 5), (5, 4), (6, 3), (7, 2), (8, 16)]


def make(rng, shape, outputs, inputs, dtype, scale=1.0, offset=0.0):
    coefficients = rng.standard_normal((outputs, inputs)).tolist()
    tensors = [torch.from_numpy(rng.standard_normal(shape) * scale + offset).to(dtype) for _ in range(inputs)]
    return coefficients, tensors


def floor(coefficients, tensors, dtype):
    """Rounding of K fused multiply-adds: K eps times the sum of magnitudes."""
    if tensors[0].numel() == 0:
        return 0.0
    return (
        len(tensors)
        * EPS[dtype]
        * max(float(sum(abs(c) * x.double().abs() for c, x in zip(row, tensors)).max()) for row in coefficients)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("outputs", "inputs"), TABLES)
def test_tables(isa, rng, outputs, inputs, dtype):
    coefficients, tensors = make(rng, (3, 5, 37), outputs, inputs, dtype)
    check(coefficients, tensors, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, rng, shape):
    coefficients, tensors = make(rng, shape, 2, 3, torch.float32)
    check(coefficients, tensors, torch.float32)


@pytest.mark.parametrize(("scale", "offset"), [(1e-30, 0), (1e30, 0), (1e-3, 1e4)])
def test_scales(isa, rng, scale, offset):
    coefficients, tensors = make(rng, (257,), 2, 3, torch.float32, scale, offset)
    check(coefficients, tensors, torch.float32)


def check(coefficients, tensors, dtype):
    ours, theirs = linear_combine(coefficients, tensors), reference(coefficients, tensors)
    oracle = reference(coefficients, [x.double() for x in tensors])
    for a, b, c in zip(ours, theirs, oracle):
        assert_no_worse(a, b, c, floor=floor(coefficients, tensors, dtype))


def test_views(isa, rng):
    base = torch.from_numpy(rng.standard_normal((6, 10, 14))).float()
    inputs = [base[::2, :, ::2], base.transpose(1, 2)[1::2, ::2].transpose(1, 2)]
    inputs = [x[:3, :10, :7] for x in inputs]
    check([[1.5, -0.5]], inputs, torch.float32)


def test_output_may_be_an_input(isa):
    x, y = torch.arange(100.0), torch.full((100,), 2.0)
    core.linear_combine_float32(
        [x.data_ptr(), y.data_ptr()], [x.data_ptr(), y.data_ptr()], [1.0, 1.0, 10.0, -1.0], 100, 2
    )
    assert torch.equal(x, torch.arange(100.0) + 20.0)
    assert torch.equal(y, torch.arange(100.0) - 2.0)


@pytest.mark.parametrize("position", [0, 15, 16, 63, 64, 99])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_reports_values_that_are_not_finite(isa, position, bad):
    x, y = torch.ones(100), torch.empty(100)
    arguments = ([x.data_ptr()], [y.data_ptr()], [0.5], 100, 1)
    assert core.linear_combine_float32(*arguments)
    x[position] = bad
    assert not core.linear_combine_float32(*arguments)


def test_writes_every_element_and_no_other(isa):
    for size in range(0, 140):
        x, y = torch.ones(size), torch.full((size + 32,), float("nan"))
        core.linear_combine_float32([x.data_ptr()], [y[16:].data_ptr()], [3.0], size, 2)
        assert torch.equal(y[16 : 16 + size], torch.full((size,), 3.0))
        assert y[:16].isnan().all()
        assert y[16 + size :].isnan().all()


def test_opcheck():
    inputs = [torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)]
    torch.library.opcheck(torch.ops.fastdiff.linear_combine, (inputs, [1.0, 2.0, 3.0, 4.0], 2))


def test_gradient():
    inputs = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    coefficients = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
    assert torch.autograd.gradcheck(lambda *x: linear_combine(coefficients, x), inputs)


def test_compiles_without_a_graph_break():
    def step(x, y):
        a, b = linear_combine([[1.0, 2.0], [0.5, -1.0]], [x.sin(), y])
        return a * b

    x, y = torch.randn(10), torch.randn(10)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), step(x, y))


def test_half_precision_takes_the_reference_and_says_why(rng):
    coefficients, tensors = make(rng, (9,), 1, 2, torch.bfloat16)
    assert "bfloat16" in supports(coefficients, tensors)
    (ours,), (theirs,) = linear_combine(coefficients, tensors), reference(coefficients, tensors)
    assert torch.equal(ours, theirs)
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="bfloat16"):
        linear_combine(coefficients, tensors)


def test_more_inputs_than_the_kernel_takes(rng):
    coefficients, tensors = make(rng, (9,), 1, core.MAX_INPUTS + 1, torch.float32)
    assert str(core.MAX_INPUTS) in supports(coefficients, tensors)
    assert torch.equal(linear_combine(coefficients, tensors)[0], reference(coefficients, tensors)[0])


@pytest.mark.parametrize(
    ("coefficients", "inputs", "message"),
    [
        ([[1.0]], [], "at least one"),
        ([[1.0, 2.0]], [torch.ones(3)], "rows of 1"),
        ([], [torch.ones(3)], "rows"),
        ([[1.0, 2.0]], [torch.ones(3), torch.ones(4)], r"inputs\[1\] is \(4,\)"),
    ],
)
def test_bad_shapes(coefficients, inputs, message):
    with pytest.raises(ValueError, match=message):
        linear_combine(coefficients, inputs)


def test_mixed_dtypes():
    with pytest.raises(TypeError, match="float64"):
        linear_combine([[1.0, 2.0]], [torch.ones(3), torch.ones(3).double()])


def test_threads_do_not_change_the_result(rng):
    coefficients, tensors = make(rng, (8, 4, 128, 128), 2, 3, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(linear_combine(coefficients, tensors))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_the_registered_operator(rng):
    """Called by its name it checks as much: the kernel itself gets bare addresses."""
    op = torch.ops.fastdiff.linear_combine
    coefficients, tensors = make(rng, (5,), 2, 2, torch.float32)
    flat = np.asarray(coefficients).T.reshape(-1).tolist()
    assert all(torch.equal(a, b) for a, b in zip(op(tensors, flat, 2), linear_combine(coefficients, tensors)))
    with pytest.raises(ValueError, match=r"inputs\[1\] is \(1,\)"):
        op([torch.ones(64), torch.ones(1)], [1.0, 1.0], 1)
    with pytest.raises(TypeError, match="float64"):
        op([torch.ones(3), torch.ones(3).double()], [1.0, 1.0], 1)
    with pytest.raises(ValueError, match="float16"):
        op([torch.ones(3).half()], [1.0], 1)
    with pytest.raises(ValueError, match="coefficients"):
        op([torch.ones(3)], [1.0], 2)


def test_forward_mode_gradients_come_from_the_reference():
    with forward_ad.dual_level():
        (y,) = linear_combine([[2.0]], [forward_ad.make_dual(torch.ones(3), torch.ones(3))])
        assert torch.equal(forward_ad.unpack_dual(y).tangent, torch.full((3,), 2.0))
