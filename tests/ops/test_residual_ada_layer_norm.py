"""residual_ada_layer_norm against float64: every instruction set and type, odd sizes, the views of chunk(6), what may
be left out; and its gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_no_worse, floor
from operators import TYPES, check_threads

import fastdiff
from fastdiff.bench.cases import tensors, wanting_gradients, wide
from fastdiff.bench.cases.residual_ada_layer_norm import make
from fastdiff.ops import ada_layer_norm, residual_ada_layer_norm
from fastdiff.ops import tensors as passed
from fastdiff.runtime.native import core

# (B, S, C): sizes of DiT and of nothing in particular; a row that fills no vector, one of several, and empty ones.
SHAPES = [(2, 256, 1152), (1, 3, 1), (2, 5, 7), (3, 1, 16), (1, 4, 63), (2, 3, 130), (1, 2, 1000), (0, 4, 8), (2, 0, 8)]
BACKWARD_SHAPES = [(2, 256, 1152), (1, 3, 1), (2, 5, 7), (3, 1, 16), (1, 130, 63), (2, 3, 130), (0, 4, 8), (2, 0, 8)]
OPTIONAL = ("gate", "scale", "shift", "weight", "bias")
NAMES = ("y", "residual", *OPTIONAL)


def normalize(h, scale, shift, weight, bias):
    z = F.layer_norm(h, h.shape[-1:], weight, bias, 1e-6)
    z = z if scale is None else z * (1 + scale)
    return z if shift is None else z + shift


def kernel(**given):
    assert residual_ada_layer_norm.unsupported(residual_ada_layer_norm.arguments(**given)) is None
    with fastdiff.use("cpu"):
        return residual_ada_layer_norm(**given)


def check(given):
    """At most twice the error of torch at the same type; z is what the norm makes of h as it is stored."""
    (h, z), (theirs_h, theirs_z) = kernel(**given), residual_ada_layer_norm.plain(**given)
    exact_h, _ = residual_ada_layer_norm.plain(**wide(given))
    norm = {name: given[name] for name in ("scale", "shift", "weight", "bias")}
    exact_z, stored_z = normalize(h.double(), **wide(norm)), normalize(h, **norm)
    assert_no_worse(h, theirs_h, exact_h, floor=floor(exact_h, h.dtype))
    assert_no_worse(z, stored_z, exact_z, floor=floor(exact_z, h.dtype, h.shape[2]))
    assert theirs_z.shape == z.shape
    if None not in (given["scale"], given["shift"]):
        one_by_one = ada_layer_norm(h, given["scale"], given["shift"], weight=given["weight"], bias=given["bias"])
        assert torch.equal(z, one_by_one)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, shape, dtype):
    check(make(shape, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("per_row", [(), ("gate", "scale", "shift")])
def test_what_may_be_left_out(isa, dtype, per_row):
    for there in itertools.product([False, True], repeat=len(OPTIONAL)):
        left_out = [name for name, given in zip(OPTIONAL, there) if not given]
        if "weight" not in left_out or "bias" in left_out:
            check(make((2, 5, 77), dtype, per_row=per_row, left_out=left_out))


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4), (5.0, 0.0)])
def test_far_means_and_scales(isa, mean, std):
    check(make((2, 9, 640), mean=mean, std=std))


def test_every_size(isa):
    """Tails: nothing beyond the row is read into the statistics, every value is written and no other."""
    for channels in range(1, 70):
        check(make((1, 2, channels), seed=channels))


def test_views(isa):
    """Rows with strides and batches with strides."""
    given = make((4, 12, 64))
    halves = {name: given[name][::2] for name in ("gate", "scale", "shift")}
    check(given | halves | dict(y=given["y"][::2, ::3], residual=given["residual"][1::2, 2::3]))
    swapped = {name: given[name][:1].expand(12, 1, 64) for name in ("gate", "scale", "shift")}
    check(given | swapped | {name: given[name].transpose(0, 1) for name in ("y", "residual")})


def test_mixed_rows(isa):
    """One of gate, scale and shift has rows of its own."""
    for name in ("gate", "scale", "shift"):
        check(make((2, 5, 33), per_row=(name,)))


def test_threads_do_not_change_the_result():
    given = make((2, 256, 1152))
    check_threads(lambda: kernel(**given))


@pytest.mark.parametrize("dtype", TYPES)
def test_large_results_which_are_written_around_the_caches(isa, dtype):
    rows, channels = 2049 if dtype is torch.float32 else 4097, 12288  # a bit more than 96 MiB
    given = make((1, 1, channels), dtype)
    large = {name: given[name].expand(1, rows, channels) for name in ("y", "residual")}
    for many, one in zip(kernel(**given | large), kernel(**given)):
        assert torch.equal(many, one.expand_as(many))


def expected(given, h, of_h, of_z):
    """Gradients in plain PyTorch, by name, from those of h and z, at the h that was stored."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in given.items() if t is not None}
    y, residual, gate, *norm = (leaves.get(name) for name in NAMES)
    exact = residual + (y if gate is None else gate * y)
    stored = exact + (h - exact).detach()
    results = [(normalize(stored, *norm), of_z), *([] if of_h is None else [(stored, of_h)])]
    outputs, cotangents = zip(*results)
    return dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), cotangents)))


def found_by_kernel(given, h, of_h, of_z, wanted=NAMES):
    """As the operator calls it, but for that some gradients need not be wanted."""
    there = {name: t for name, t in given.items() if t is not None and name in wanted}
    found = {name: torch.full(t.shape, torch.nan, dtype=t.dtype) for name, t in there.items()}
    held = []
    rows = [of_h, of_z, h, *(given[name] for name in ("y", "gate", "scale", "shift"))]
    core.residual_ada_layer_norm_backward(
        passed.TYPES[h.dtype], [passed.address(found.get(name)) for name in NAMES],
        *(passed.rows(t, held) for t in rows), passed.address(given["weight"]), passed.address(given["bias"]),
        h.shape, 1e-6, torch.get_num_threads(),
    )  # fmt: skip
    return found


def largest(tensor):
    return 1.0 if tensor is None else float(tensor.double().abs().max())


def check_gradients(given, with_h=True):
    """At most twice the error of torch at the same type. The terms of the gradient of h may cancel."""
    h, _ = kernel(**given)
    generator = torch.Generator().manual_seed(1)
    of_h, of_z = (torch.randn(h.shape, generator=generator).to(h.dtype) for _ in range(2))
    of_h = of_h if with_h else None
    ours, theirs = found_by_kernel(given, h, of_h, of_z), expected(given, h, of_h, of_z)
    exact = expected(wide(given), h.double(), None if of_h is None else of_h.double(), of_z.double())
    assert list(ours) == list(exact)
    sizes = {}
    if h.numel():
        deviation = float((h.double().var(dim=2, correction=0).min() + 1e-6).rsqrt())
        scale = None if given["scale"] is None else 1 + given["scale"].double()
        of_x = largest(of_z) * largest(scale) * largest(given["weight"]) * deviation + (largest(of_h) if with_h else 0)
        sizes = {"residual": of_x, "y": of_x * largest(given["gate"]), "gate": of_x * largest(given["y"])}
    terms = max(h.shape[0] * h.shape[1], h.shape[2])
    for name, oracle in exact.items():
        allowed = floor(oracle, h.dtype, terms, sizes.get(name, 0.0))
        assert_no_worse(ours[name], theirs[name], oracle, floor=allowed)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", BACKWARD_SHAPES)
def test_gradients(isa, shape, dtype):
    check_gradients(make(shape, dtype))


@pytest.mark.parametrize("with_h", [False, True])
def test_gradients_of_what_is_there(isa, with_h):
    for there in itertools.product([False, True], repeat=len(OPTIONAL)):
        left_out = [name for name, given in zip(OPTIONAL, there) if not given]
        if "weight" not in left_out or "bias" in left_out:
            check_gradients(make((2, 5, 77), left_out=left_out), with_h)


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-30.0, 1e-2), (0.0, 1e-4), (0.0, 1e4)])
def test_gradients_at_far_means_and_scales(isa, mean, std):
    check_gradients(make((2, 9, 640), mean=mean, std=std))


def test_gradients_of_every_size(isa):
    for channels in range(1, 70):
        check_gradients(make((1, 2, channels)))
    for count in (63, 64, 65, 129):
        check_gradients(make((2, count, 5)))


def test_gradients_of_views(isa):
    given = make((4, 12, 64))
    halves = {name: given[name][::2] for name in ("gate", "scale", "shift")}
    check_gradients(given | halves | dict(y=given["y"][::2, ::3], residual=given["residual"][1::2, 2::3]))


def test_only_the_gradients_that_are_wanted(isa):
    """Each gradient alone is the same to the bit as with all others; y is not read where no gate's is wanted."""
    given = make((2, 70, 33))
    h, _ = kernel(**given)
    of_h, of_z = torch.randn(2, *h.shape)
    everything = found_by_kernel(given, h, of_h, of_z)
    for name in NAMES:
        without_y = given if name == "gate" else given | {"y": torch.full_like(given["y"], torch.nan)}
        found = found_by_kernel(without_y, h, of_h, of_z, wanted=(name,))
        assert list(found) == [name]
        assert torch.equal(found[name], everything[name])


def test_threads_do_not_change_the_gradients():
    given = make((2, 256, 1152))
    h, z = kernel(**given)
    check_threads(lambda: found_by_kernel(given, h, z.cos(), z.sin()).values())


# ---- as an operator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [(), ("gate",), ("scale", "shift"), OPTIONAL])
@pytest.mark.parametrize(
    "use",
    [lambda h, z: h.sin().sum() + z.cos().sum(), lambda h, z: h.square().sum(), lambda h, z: z.square().sum()],
    ids=["both", "h", "z"],
)
def test_the_operator_and_its_gradients(left_out, use):
    given = make((2, 70, 33), left_out=left_out)

    def run(backend, given):
        inputs = wanting_gradients(given)
        with fastdiff.use(backend):
            h, z = residual_ada_layer_norm(**inputs)
        found = torch.autograd.grad(use(h, z), tensors(inputs), materialize_grads=True)
        return [h.detach(), z.detach(), *found]

    ours, theirs, exact = run("cpu", given), run("reference", given), run("reference", wide(given))
    for mine, other, oracle in zip(ours, theirs, exact, strict=True):
        assert_no_worse(mine, other, oracle, floor=floor(oracle, torch.float32, terms=140))


def test_gradcheck():
    given = {name: t.requires_grad_() for name, t in make((2, 3, 5), torch.float64).items()}
    assert torch.autograd.gradcheck(lambda *t: residual_ada_layer_norm(**dict(zip(NAMES, t))), tuple(given.values()))


def test_opcheck():
    given = make((2, 3, 8))
    operator, backward = torch.ops.fastdiff.residual_ada_layer_norm, torch.ops.fastdiff.residual_ada_layer_norm_backward
    torch.library.opcheck(operator, tuple(t.clone().requires_grad_() for t in given.values()))
    torch.library.opcheck(operator, (given["y"], given["residual"]))
    h, z = operator(*given.values())
    torch.library.opcheck(backward, (h, z, h, *given.values(), 1e-6))
    with pytest.raises(ValueError, match="from row to row"):
        backward(h, z, h, *(given | {"gate": h}).values(), 1e-6)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        operator(*(t.double() for t in given.values()))


def test_compiles_without_a_graph_break():
    given = make((2, 3, 16))

    def block(y):
        h, z = residual_ada_layer_norm(**(given | {"y": y.sin()}))
        return h * 2 + z

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(given["y"]), block(given["y"]))


def test_per_row_gradients_go_to_the_reference():
    given = wanting_gradients(make((2, 600, 32), per_row=("gate",)))
    assert "row to row" in residual_ada_layer_norm.slower_backward(residual_ada_layer_norm.Arguments(**given))
    results = (residual_ada_layer_norm(**given), residual_ada_layer_norm.plain(**given))
    for ours, wanted in zip(*(torch.autograd.grad((h + z).sum(), tensors(given)) for h, z in results)):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(y=torch.ones(3, 8)), ValueError, r"y must be \(B, S, C\) and have channels, got \(3, 8\)"),
        (dict(residual=torch.ones(2, 1, 8)), ValueError, "residual is"),
        (dict(gate=torch.ones(1, 1, 8)), ValueError, r"gate is \(1, 1, 8\), expected \(2, 1, 8\) or \(2, 3, 8\)"),
        (dict(scale=torch.ones(2, 2, 8)), ValueError, "scale is"),
        (dict(weight=None), ValueError, "bias needs weight"),
        (dict(shift=torch.ones(2, 1, 8).double()), TypeError, "shift is torch.float64, y is torch.float32"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        residual_ada_layer_norm(**(make((2, 3, 8)) | change))
