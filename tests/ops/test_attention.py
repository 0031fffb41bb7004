"""attention against float64: every instruction set and type, layouts, masks, maps, odd sizes, large scores,
gradients."""

import functools
import itertools
import sys

import pytest
import torch
from conftest import assert_no_worse, floor
from operators import TYPES, check_gradients, check_results, check_threads, gradients, slower, unsupported
from torch.autograd import forward_ad

import fastdiff
from fastdiff.bench.cases import wanting_gradients, wide
from fastdiff.bench.cases.attention import make
from fastdiff.ops import attention

# (B, H, Sq, Sk, D): of U-Nets and DiT, of a VAE, and odd ones; fewer queries than lanes, more keys than a block, no
# keys.
SIZES = [
    (2, 4, 64, 64, 40),
    (1, 2, 100, 77, 64),
    (1, 3, 256, 256, 72),
    (2, 2, 33, 300, 80),
    (1, 1, 70, 45, 128),
    (1, 2, 16, 500, 160),
    (1, 1, 65, 141, 512),
    (3, 1, 1, 7, 1),
    (1, 2, 5, 1, 3),
    (2, 3, 31, 139, 17),
    (0, 2, 4, 4, 8),
    (2, 0, 4, 4, 8),
    (1, 1, 0, 4, 8),
    (1, 2, 3, 0, 8),
]


def check(q, k, v, mask=None, scale=None):
    """The sums are of weights, which are as exact as the largest score; the floor is of the largest value."""
    inputs = dict(q=q, k=k, v=v, mask=mask, scale=scale)
    assert unsupported(attention, **inputs) is None
    scores = (q.shape[-1] ** -0.5 if scale is None else scale) * (q.double() @ k.double().transpose(2, 3))
    size, largest = (float(t.abs().max()) if t.numel() else 0.0 for t in (v, scores))
    (ours,) = check_results(attention, inputs, terms=1 + k.shape[2], size=size, more=largest)
    assert ours.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(isa, size, dtype):
    check(**make(size, dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_layouts(isa, dtype):
    """(B, S, H, D) storage, chunks of one projection, strided queries, and last dimensions that are copied."""
    q, k, v = make((2, 3, 40, 90, 24), dtype).values()
    check(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)))
    fused = torch.randn(2, 50, 3 * 4 * 24).to(dtype).unflatten(2, (3, 4, 24))
    check(*(t.transpose(1, 2) for t in fused.unbind(2)))
    check(q[:, :, ::3], k[:, :, 1::2], v[:, :, 1::2])
    check(q[:1].expand(2, -1, -1, -1), k[:, :1].expand(-1, 3, -1, -1), v)
    check(*(t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 37, 150), (1, 1, 37, 150), (2, 1, 1, 150), (3, 37, 1), (37, 150), (150,), ()])
def test_masks(isa, shape, dtype):
    q, k, v = make((2, 3, 37, 150, 20), dtype).values()
    generator = torch.Generator().manual_seed(1)
    boolean = torch.rand(shape, generator=generator) > 0.3
    check(q, k, v, boolean)
    additive = torch.randn(shape, generator=generator).to(dtype)
    check(q, k, v, additive)
    check(q, k, v, additive.masked_fill(~boolean, -torch.inf))
    if len(shape) == 4:
        check(q, k, v, boolean.transpose(2, 3).contiguous().transpose(2, 3))


def test_rows_without_keys_are_zero(isa):
    q, k, v = make((1, 2, 40, 150, 16)).values()
    mask = torch.rand(40, 150) > 0.5
    mask[3], mask[:, :145] = False, False
    check(q, k, v, mask)
    with fastdiff.use("cpu"):
        y, maps = attention(q, k, v, mask=mask, return_maps=True)
    assert not y[:, :, 3].any()
    assert not maps[:, :, 3].any()


def test_the_least_number_as_a_mask(isa):
    """The other spelling of a mask; where it hides all keys, all count alike."""
    q, k, v = make((1, 2, 20, 150, 16)).values()
    mask = torch.where(torch.rand(20, 150) > 0.5, 0.0, torch.finfo(torch.float32).min)
    mask[3] = torch.finfo(torch.float32).min
    check(q, k, v, mask)


def test_other_value_channels_and_scales(isa):
    for channels, value_channels, scale in [(8, 33, None), (40, 1, 0.3), (64, 20, -0.5), (16, 16, 0.0)]:
        check(**make((1, 2, 35, 80, channels), value_channels=value_channels), scale=scale)


def test_every_number_of_keys_queries_and_channels(isa):
    """Tails of tiles and vectors."""
    for number in (*range(1, 40), 125, 126, 127, 139, 140, 141, 279, 280, 281):
        check(**make((1, 1, number, 3, 5), seed=number))
        check(**make((1, 1, 3, number, 5), seed=number))
        check(**make((1, 1, 3, 5, number), seed=number))


@pytest.mark.parametrize("std", [30.0, 300.0, 1e-3])
def test_large_and_small_scores(isa, std):
    check(**make((1, 2, 50, 400, 32), std=std))


def test_scores_that_grow_along_the_keys(isa):
    """Blocks whose largest score is far above that of the first: the reference point must follow."""
    q, k, v = make((1, 1, 40, 700, 24)).values()
    q[:, :, ::2] += 4
    k += torch.linspace(-20, 20, 700)[:, None]
    check(q, k, v)
    check(q, k.flip(2), v)
    mask = torch.linspace(-300, 300, 700)
    check(q, k, v, mask)


def test_long_sums(isa):
    """Thousands of equal weights: the error may not grow with their number."""
    q, k, v = make((1, 1, 32, 8192, 24), std=1e-3).values()
    check(q, k, 1 + v)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_and_infinity_go_where_they_belong(isa, where):
    q, k, v = make((1, 2, 40, 150, 16)).values()
    tensors = dict(q=q, k=k, v=v)
    tensors[where][0, 1, 7, 3] = float("nan")
    with fastdiff.use("cpu"):
        bad = attention(q, k, v).isnan()
    expected = attention.plain(q, k, v).isnan()
    assert bad.any()
    assert torch.equal(bad, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_maps(isa, dtype):
    for size in [(2, 3, 40, 77, 24), (1, 2, 33, 300, 24), (1, 2, 33, 300, 8), (1, 1, 3, 2, 5)]:
        q, k, v = make(size, dtype).values()
        for mask in (None, torch.rand(size[3]) > 0.2):
            with fastdiff.use("cpu"):
                y, maps = attention(q, k, v, mask=mask, return_maps=True)
                assert torch.equal(y, attention(q, k, v, mask=mask))
            _, theirs = attention.plain(q, k, v, mask=mask, return_maps=True)
            _, oracle = attention.plain(q.double(), k.double(), v.double(), mask=mask, return_maps=True)
            assert maps.dtype == dtype
            assert_no_worse(maps, theirs, oracle, floor=floor(oracle, dtype, size=1.0))


@pytest.mark.parametrize("size", [(2, 3, 200, 300, 40), (2, 3, 200, 77, 40), (1, 2, 100, 77, 64), (1, 1, 3, 500, 24)])
def test_threads_do_not_change_the_result(size):
    inputs = make(size)
    check_threads(lambda: attention(**inputs))


def test_nothing_of_the_size_of_the_maps_is_allocated():
    q, k, v = make((1, 1, 3000, 3000, 24)).values()
    with torch.profiler.profile(profile_memory=True) as profile:
        attention(q, k, v)
    largest = max((abs(event.cpu_memory_usage) for event in profile.events()), default=0)
    assert 0 < largest < 3000 * 3000


def test_opcheck():
    q, k, v = (t.requires_grad_() for t in make((1, 2, 5, 6, 8)).values())
    operator = torch.ops.fastdiff.attention
    for return_maps, return_lse in itertools.product((False, True), repeat=2):
        torch.library.opcheck(operator, (q, k, v, None, 0.5, return_maps, return_lse))
    torch.library.opcheck(operator, (q, k, v, torch.rand(5, 6) > 0.2, 0.5, False, True))
    torch.library.opcheck(operator, (q, k, v, torch.rand(5, 6), 0.5, False, True))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
@pytest.mark.parametrize("size", [(2, 3, 37, 53, 40), (1, 2, 64, 77, 16), (1, 1, 5, 600, 8)])
def test_gradients(size, kind, dtype):
    """Against float64, no worse than twice torch's; with rows that have no key."""
    inputs, mask = make(size, dtype), None
    generator = torch.Generator().manual_seed(2)
    if kind != "none":
        mask = torch.rand(size[2], size[3], generator=generator) > 0.3
        mask[1] = False
        mask = mask if kind == "boolean" else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
    cotangent = torch.randn(inputs["q"].shape, generator=generator).to(dtype)
    check_gradients(attention, inputs | {"mask": mask}, cotangent, terms=min(512, max(size[2:])), without=("mask",))
    with fastdiff.use("cpu"):
        assert attention(**wanting_gradients(inputs)).grad_fn is not None


def of_a_map(q, k, v, bias, backend):
    with fastdiff.use(backend):
        y, maps = attention(q, k, v, return_maps=True)
        z = attention(q, k, v)
    with fastdiff.use("auto" if backend == "cpu" else backend):
        w = attention(q, k, v, mask=bias)
    return (y * maps.sum()).square().sum() + (maps.square().sum() + z.pow(3).sum()) * w.sin().sum()


def of_a_gradient(q, k, v, bias, backend):
    with fastdiff.use(backend):
        y = attention(q, k, v) if backend == "cpu" else attention.plain(q, k, v, return_maps=True)[0]
    (first,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    return first.square().sum() + 0 * bias.sum()


@pytest.mark.parametrize("function", [of_a_map, of_a_gradient])
def test_gradients_of_maps_masks_and_gradients(function):
    """These go through the reference."""
    inputs = make((1, 2, 6, 7, 8)) | {"bias": torch.randn(6, 7, generator=torch.Generator().manual_seed(1))}
    one = torch.ones(())
    # torch's flash kernel has no second derivative.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        ours, theirs, exact = (
            gradients(functools.partial(function, backend=backend), given, [one.to(given["q"])]).values()
            for backend, given in (("cpu", inputs), ("reference", inputs), ("reference", wide(inputs)))
        )
    for mine, other, oracle in zip(ours, theirs, exact):
        assert_no_worse(mine, other, oracle, floor=floor(oracle, torch.float32, terms=6 * 7 * 8))


def test_gradcheck():
    q, k, v = (t.requires_grad_() for t in make((1, 2, 3, 4, 5), torch.float64).values())
    assert torch.autograd.gradcheck(attention, (q, k, v))
    assert torch.autograd.gradcheck(lambda *t: attention(*t, return_maps=True), (q, k, v))


def test_compiles_without_a_graph_break():
    q, k, v = make((1, 2, 9, 11, 8)).values()

    def block(q, k, v):
        return attention(q.sin(), k, v, mask=torch.ones(9, 11, dtype=torch.bool)).transpose(1, 2).flatten(2) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), block(q, k, v))


def test_what_the_kernel_cannot_take():
    q, k, v = make((1, 2, 3, 4, 8), torch.float64).values()
    assert "float64" in unsupported(attention, q, k, v)
    assert torch.equal(attention(q, k, v), attention.plain(q, k, v))
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="float64"):
        attention(q, k, v)
    q, k, v = make((1, 2, 3, 4, 8)).values()
    assert "mask" in unsupported(attention, q, k, v, mask=torch.zeros(3, 4, requires_grad=True))
    with forward_ad.dual_level():
        assert "forward-mode" in unsupported(attention, q, k, v)


def test_torch_runs_where_it_is_faster(isa, monkeypatch):
    monkeypatch.setattr(sys.modules[attention.__module__], "_has_bfloat16_products", True)
    few, many = (make((1, 1, 8, keys, 8), torch.bfloat16) for keys in (77, 256))
    assert slower(attention, **few) is None
    if isa == "amx":  # our own kernel multiplies in hardware as well
        assert slower(attention, **many) is None
        return
    assert "bfloat16" in slower(attention, **many)
    assert torch.equal(attention(**many), attention.plain(**many))
    monkeypatch.setattr(sys.modules[attention.__module__], "_has_bfloat16_products", False)
    assert slower(attention, **many) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(q=torch.ones(2, 3, 8)), ValueError, r"must be \(B, H, S, D\), got \(2, 3, 8\)"),
        (dict(q=torch.ones(2, 3, 5, 0)), ValueError, "must be"),
        (dict(k=torch.ones(2, 3, 6, 7)), ValueError, r"k is \(2, 3, 6, 7\), expected \(2, 3, 6, 8\)"),
        (dict(k=torch.ones(2, 1, 6, 8)), ValueError, "k is"),
        (dict(v=torch.ones(2, 3, 5, 8)), ValueError, r"v is \(2, 3, 5, 8\), expected \(2, 3, 6, 8\)"),
        (dict(mask=torch.ones(4, 6)), ValueError, r"mask is \(4, 6\), which does not broadcast to \(2, 3, 5, 6\)"),
        (dict(mask=torch.ones(1, 2, 3, 5, 6)), ValueError, "does not broadcast"),
        (dict(mask=torch.ones(5, 6).double()), TypeError, r"mask is torch\.float64"),
        (dict(mask=torch.ones(5, 6, dtype=torch.int64)), TypeError, r"mask is torch\.int64"),
        (dict(v=torch.ones(2, 3, 6, 8).double()), TypeError, r"v is torch\.float64"),
        (dict(k=torch.ones(2, 3, 6, 8, device="meta")), ValueError, "k is on meta"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        attention(**make((2, 3, 5, 6, 8)) | change)


def test_the_registered_operator_checks_as_much():
    q, k, v = make((2, 3, 5, 6, 8)).values()
    operator = torch.ops.fastdiff.attention
    assert torch.equal(operator(q, k, v, None, 8**-0.5, False, False)[0], attention(q, k, v))
    with pytest.raises(ValueError, match="k is"):
        operator(q, k[..., :7], v, None, 1.0, False, False)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        operator(q.double(), k.double(), v.double(), None, 1.0, False, False)
