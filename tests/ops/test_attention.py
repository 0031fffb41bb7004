"""attention against float64: every instruction set and type, layouts, masks, maps, odd sizes, large scores,
gradients."""

import itertools
import math
import sys

import pytest
import torch
from conftest import assert_no_worse
from torch.autograd import forward_ad

import fastdiff
from fastdiff.ops.attention import Arguments, attention
from fastdiff.runtime.dispatcher import wants_gradient


def supports(*values, **named):
    return attention.unsupported(Arguments(*values, **named))


def faster_in_torch(*values, **named):
    a = Arguments(*values, **named)
    return attention.slower(a) or (attention.slower_backward(a) if wants_gradient(a) else None)


TYPES = (torch.float32, torch.bfloat16, torch.float16)
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


def make(size, dtype=torch.float32, *, seed=0, value_channels=None, std=1.0):
    batch, heads, queries, keys, channels = size
    generator = torch.Generator().manual_seed(seed)
    shapes = (queries, channels), (keys, channels), (keys, value_channels or channels)
    q, k, v = (torch.randn(batch, heads, *shape, generator=generator) for shape in shapes)
    return (std * q).to(dtype), k.to(dtype), v.to(dtype)


def check(q, k, v, mask=None, scale=None):
    """At most twice the error of torch at the same type; the floor is a rounding of the output, and the rounding of
    scores and sums: of the largest score, and of the logarithm of the number of keys."""
    assert supports(q, k, v, mask) is None
    with fastdiff.use("cpu"):
        ours = attention(q, k, v, mask=mask, scale=scale)
    theirs = attention.plain(q, k, v, mask=mask, scale=scale)
    wide = mask if mask is None or mask.dtype is torch.bool else mask.double()
    oracle = attention.plain(q.double(), k.double(), v.double(), mask=wide, scale=scale)
    assert ours.dtype == q.dtype
    assert ours.transpose(1, 2).is_contiguous()
    if not ours.numel():
        assert ours.shape == oracle.shape
        return
    scores = (q.shape[-1] ** -0.5 if scale is None else scale) * (q.double() @ k.double().transpose(2, 3))
    rounding = 1 + math.log2(1 + k.shape[2]) + (float(scores.abs().max()) if scores.numel() else 0)
    eps, single = torch.finfo(q.dtype).eps, torch.finfo(torch.float32).eps
    assert_no_worse(ours, theirs, oracle, floor=float(v.abs().max() if v.numel() else 0) * (eps + single * rounding))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(isa, size, dtype):
    check(*make(size, dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_layouts(isa, dtype):
    """(B, S, H, D) storage, chunks of one projection, strided queries, and last dimensions that are copied."""
    q, k, v = make((2, 3, 40, 90, 24), dtype)
    check(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)))
    fused = torch.randn(2, 50, 3 * 4 * 24).to(dtype).unflatten(2, (3, 4, 24))
    check(*(t.transpose(1, 2) for t in fused.unbind(2)))
    check(q[:, :, ::3], k[:, :, 1::2], v[:, :, 1::2])
    check(q[:1].expand(2, -1, -1, -1), k[:, :1].expand(-1, 3, -1, -1), v)
    check(*(t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 37, 150), (1, 1, 37, 150), (2, 1, 1, 150), (3, 37, 1), (37, 150), (150,), ()])
def test_masks(isa, shape, dtype):
    q, k, v = make((2, 3, 37, 150, 20), dtype)
    generator = torch.Generator().manual_seed(1)
    boolean = torch.rand(shape, generator=generator) > 0.3
    check(q, k, v, boolean)
    additive = torch.randn(shape, generator=generator).to(dtype)
    check(q, k, v, additive)
    check(q, k, v, additive.masked_fill(~boolean, -torch.inf))
    if len(shape) == 4:
        check(q, k, v, boolean.transpose(2, 3).contiguous().transpose(2, 3))


def test_rows_without_keys_are_zero(isa):
    q, k, v = make((1, 2, 40, 150, 16))
    mask = torch.rand(40, 150) > 0.5
    mask[3], mask[:, :145] = False, False
    check(q, k, v, mask)
    with fastdiff.use("cpu"):
        y, maps = attention(q, k, v, mask=mask, return_maps=True)
    assert not y[:, :, 3].any()
    assert not maps[:, :, 3].any()


def test_the_least_number_as_a_mask(isa):
    """The other spelling of a mask; where it hides all keys, all count alike."""
    q, k, v = make((1, 2, 20, 150, 16))
    mask = torch.where(torch.rand(20, 150) > 0.5, 0.0, torch.finfo(torch.float32).min)
    mask[3] = torch.finfo(torch.float32).min
    check(q, k, v, mask)


def test_other_value_channels_and_scales(isa):
    for channels, value_channels, scale in [(8, 33, None), (40, 1, 0.3), (64, 20, -0.5), (16, 16, 0.0)]:
        check(*make((1, 2, 35, 80, channels), value_channels=value_channels), scale=scale)


def test_every_number_of_keys_queries_and_channels(isa):
    """Tails of tiles and vectors."""
    for number in (*range(1, 40), 125, 126, 127, 139, 140, 141, 279, 280, 281):
        check(*make((1, 1, number, 3, 5), seed=number))
        check(*make((1, 1, 3, number, 5), seed=number))
        check(*make((1, 1, 3, 5, number), seed=number))


@pytest.mark.parametrize("std", [30.0, 300.0, 1e-3])
def test_large_and_small_scores(isa, std):
    check(*make((1, 2, 50, 400, 32), std=std))


def test_scores_that_grow_along_the_keys(isa):
    """Blocks whose largest score is far above that of the first: the reference point must follow."""
    q, k, v = make((1, 1, 40, 700, 24))
    q[:, :, ::2] += 4
    k += torch.linspace(-20, 20, 700)[:, None]
    check(q, k, v)
    check(q, k.flip(2), v)
    mask = torch.linspace(-300, 300, 700)
    check(q, k, v, mask)


def test_long_sums(isa):
    """Thousands of equal weights: the error may not grow with their number."""
    q, k, v = make((1, 1, 32, 8192, 24), std=1e-3)
    check(q, k, 1 + v)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_and_infinity_go_where_they_belong(isa, where):
    q, k, v = make((1, 2, 40, 150, 16))
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
        q, k, v = make(size, dtype)
        for mask in (None, torch.rand(size[3]) > 0.2):
            with fastdiff.use("cpu"):
                y, maps = attention(q, k, v, mask=mask, return_maps=True)
                assert torch.equal(y, attention(q, k, v, mask=mask))
            _, theirs = attention.plain(q, k, v, mask=mask, return_maps=True)
            _, oracle = attention.plain(q.double(), k.double(), v.double(), mask=mask, return_maps=True)
            assert maps.dtype == dtype
            assert_no_worse(maps, theirs, oracle, floor=torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", [(2, 3, 200, 300, 40), (2, 3, 200, 77, 40), (1, 2, 100, 77, 64), (1, 1, 3, 500, 24)])
def test_threads_do_not_change_the_result(size):
    q, k, v = make(size)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(attention(q, k, v))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_nothing_of_the_size_of_the_maps_is_allocated():
    q, k, v = make((1, 1, 3000, 3000, 24))
    with torch.profiler.profile(profile_memory=True) as profile:
        attention(q, k, v)
    largest = max((abs(event.cpu_memory_usage) for event in profile.events()), default=0)
    assert 0 < largest < 3000 * 3000


def test_opcheck():
    q, k, v = (t.requires_grad_() for t in make((1, 2, 5, 6, 8)))
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
    q, k, v = make(size, dtype)
    mask = None
    if kind != "none":
        mask = torch.rand(size[2], size[3], generator=torch.Generator().manual_seed(2)) > 0.3
        mask[1] = False
        mask = mask if kind == "boolean" else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(3))

    def gradients(backend, dtype):
        tensors = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        added = mask if mask is None or mask.dtype is torch.bool else mask.to(dtype)
        with fastdiff.use(backend):
            y = attention(*tensors, mask=added)
        return torch.autograd.grad((y * weights.to(dtype)).sum(), tensors)

    with fastdiff.use("cpu"):
        assert attention(q.requires_grad_(), k, v).grad_fn is not None
    q = q.detach()
    for ours, theirs, oracle in zip(
        gradients("cpu", dtype), gradients("reference", dtype), gradients("reference", torch.float64)
    ):
        size_of_it = float(oracle.abs().max())
        assert_no_worse(ours, theirs, oracle, floor=size_of_it * 4 * torch.finfo(dtype).eps)


def test_gradients_of_maps_masks_and_gradients():
    """These go through the reference."""
    q, k, v = (t.requires_grad_() for t in make((1, 2, 6, 7, 8)))
    bias = torch.randn(6, 7, requires_grad=True)

    def scalar(backend):
        with fastdiff.use(backend):
            y, maps = attention(q, k, v, return_maps=True)
            z = attention(q, k, v)
        with fastdiff.use("auto" if backend == "cpu" else backend):
            w = attention(q, k, v, mask=bias)
        return (y * maps.sum()).square().sum() + (maps.square().sum() + z.pow(3).sum()) * w.sin().sum()

    tensors = [q, k, v, bias]
    for ours, theirs in zip(*(torch.autograd.grad(scalar(b), tensors) for b in ("cpu", "reference"))):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    def second(backend):
        with fastdiff.use(backend):
            y = attention(q, k, v) if backend == "cpu" else attention.plain(q, k, v, return_maps=True)[0]
        (first,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [q, k, v])

    # torch's flash kernel has no second derivative.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for ours, theirs in zip(second("cpu"), second("reference")):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    q, k, v = (t.double().requires_grad_() for t in make((1, 2, 3, 4, 5)))
    assert torch.autograd.gradcheck(attention, (q, k, v))
    assert torch.autograd.gradcheck(lambda *t: attention(*t, return_maps=True), (q, k, v))


def test_compiles_without_a_graph_break():
    q, k, v = make((1, 2, 9, 11, 8))

    def block(q, k, v):
        return attention(q.sin(), k, v, mask=torch.ones(9, 11, dtype=torch.bool)).transpose(1, 2).flatten(2) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), block(q, k, v))


def test_what_the_kernel_cannot_take():
    q, k, v = (t.double() for t in make((1, 2, 3, 4, 8)))
    assert "float64" in supports(q, k, v)
    torch.testing.assert_close(attention(q, k, v), attention.plain(q, k, v), rtol=1e-14, atol=1e-14)
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="float64"):
        attention(q, k, v)
    q, k, v = make((1, 2, 3, 4, 8))
    assert "mask" in supports(q, k, v, torch.zeros(3, 4, requires_grad=True))
    with forward_ad.dual_level():
        assert "forward-mode" in supports(q, k, v)


def test_torch_runs_where_it_is_faster(isa, monkeypatch):
    monkeypatch.setattr(sys.modules[attention.__module__], "_has_bfloat16_products", True)
    few, many = make((1, 1, 8, 77, 8), torch.bfloat16), make((1, 1, 8, 256, 8), torch.bfloat16)
    assert faster_in_torch(*few) is None
    if isa == "amx":  # our own kernel multiplies in hardware as well
        assert faster_in_torch(*many) is None
        return
    assert "bfloat16" in faster_in_torch(*many)
    assert torch.equal(attention(*many), attention.plain(*many))
    monkeypatch.setattr(sys.modules[attention.__module__], "_has_bfloat16_products", False)
    assert faster_in_torch(*many) is None


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
    q, k, v = make((2, 3, 5, 6, 8))
    arguments = dict(q=q, k=k, v=v) | change
    with pytest.raises(error, match=message):
        attention(**arguments)


def test_the_registered_operator_checks_as_much():
    q, k, v = make((2, 3, 5, 6, 8))
    operator = torch.ops.fastdiff.attention
    assert torch.equal(operator(q, k, v, None, 8**-0.5, False, False)[0], attention(q, k, v))
    with pytest.raises(ValueError, match="k is"):
        operator(q, k[..., :7], v, None, 1.0, False, False)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        operator(q.double(), k.double(), v.double(), None, 1.0, False, False)
