"""linear_combine against float64: every instruction set, odd sizes, views, aliasing, tables at their limits."""

import pytest
import torch
from operators import check_results, check_threads, unsupported
from torch.autograd import forward_ad

import fastdiff
from fastdiff.bench.cases.linear_combine import make
from fastdiff.ops import linear_combine
from fastdiff.runtime.native import core

SHAPES = [(1,), (7,), (0,), (3, 0, 5), (2, 3, 5, 7), (1, 4, 64, 64), (1023,), (8, 4, 128, 128)]
TABLES = [(1, 1), (2, 3), (1, 16), (3, 2), (4, 5), (5, 4), (6, 3), (7, 2), (8, 16)]


def check(coefficients, inputs):
    """Each product of a sum is rounded; the largest sum of magnitudes is what the floor is of."""
    rows = [[abs(c) * x.double().abs() for c, x in zip(row, inputs)] for row in coefficients]
    size = max(float(sum(row).max()) for row in rows) if inputs[0].numel() else 0.0
    check_results(linear_combine, dict(coefficients=coefficients, inputs=inputs), len(inputs), size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("outputs", "inputs"), TABLES)
def test_tables(isa, outputs, inputs, dtype):
    check(**make((3, 5, 37), dtype, outputs=outputs, inputs=inputs))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, shape):
    check(**make(shape))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1e-30), (0.0, 1e30), (1e4, 1e-3)])
def test_scales(isa, mean, std):
    check(**make((257,), mean=mean, std=std))


def test_views(isa):
    base = torch.randn(6, 10, 14)
    check([[1.5, -0.5]], [base[::2, :, ::2], base.transpose(1, 2)[1::2, ::2].transpose(1, 2)[:3, :10, :7]])


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
    assert torch.equal(compiled(x, y), step(x, y))


def test_half_precision_takes_the_reference_and_says_why():
    given = make((9,), torch.bfloat16, outputs=1, inputs=2)
    assert "bfloat16" in unsupported(linear_combine, **given)
    assert torch.equal(*linear_combine(**given), *linear_combine.plain(**given))
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="bfloat16"):
        linear_combine(**given)


def test_more_inputs_than_the_kernel_takes():
    given = make((9,), outputs=1, inputs=core.MAX_INPUTS + 1)
    assert str(core.MAX_INPUTS) in unsupported(linear_combine, **given)
    assert torch.equal(*linear_combine(**given), *linear_combine.plain(**given))


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


def test_threads_do_not_change_the_result():
    given = make((8, 4, 128, 128))
    check_threads(lambda: linear_combine(**given), (1, 2, 3))


def test_the_registered_operator():
    """Called by its name it checks as much: the kernel itself gets bare addresses."""
    op = torch.ops.fastdiff.linear_combine
    given = make((5,), outputs=2, inputs=2)
    assert all(map(torch.equal, op(*linear_combine.arguments(**given)), linear_combine(**given)))
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
