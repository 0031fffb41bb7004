"""group_norm_silu's kernels: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import itertools

import torch
from checks import assert_fits, assert_no_worse
from torch import Tensor

from fastdiff.kernels.group_norm_silu import group_norm_silu, group_norm_silu_backward
from fastdiff.kernels.group_norm_silu.flat_plan import Flat
from fastdiff.kernels.group_norm_silu.plan import Plan
from fastdiff.kernels.group_norm_silu.rows_plan import Rows, other_rows, rows_plan
from fastdiff.ops import group_norm_silu as op
from fastdiff.runtime.device import Device

reference = op.plain.positional


def parts(x: Tensor) -> Plan:
    """Small groups cut as large ones are: the last part is shorter, and launches have two groups each."""
    pixels = x.shape[2] * x.shape[3]
    part_pixels = pixels // 3 + 1
    block_channels = 2 if x.shape[1] < 8 else 64
    return Plan(False, block_channels, 256, 4, part_pixels, -(-pixels // part_pixels), 2)


def numbers() -> None:
    torch.manual_seed(0)
    cases = [((2, 6, 5, 7), 3), ((1, 4, 40, 33), 2), ((1, 8), 4), ((0, 4, 2, 2), 2)]
    for (shape, groups), dtype, last in itertools.product(cases, [torch.float32, torch.float16], [False, True]):
        for present in [(False,) * 5, (True,) * 5, (True, False, False, True, True)]:
            x = (20 + torch.randn(shape)).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x
            tensors = [*torch.randn(2, shape[1]).to(dtype), *torch.randn(2, *shape[:2]).to(dtype)]
            weight, bias, scale, shift = (t if there else None for t, there in zip(tensors, present))
            activation = "silu" if present[4] else "none"
            arguments = (x, groups, weight, bias, 1e-5, scale, shift, activation)
            cut = parts(x) if len(shape) == 4 and present[0] else None
            ours = group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift, activation=activation, cut=cut)
            theirs = reference(*arguments)
            exact = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
            assert ours.stride() == theirs.stride()
            floor = rounding(exact, x, groups, weight, scale)
            assert_no_worse(ours, theirs, exact, floor, shape, groups, dtype, last, present)


def rounding(exact: Tensor, x: Tensor, groups: int, weight: Tensor | None = None, scale: Tensor | None = None) -> float:
    """Of results and sums. The mean is a float32 as well; of a group of two numbers that are close, much is made of
    its rounding."""
    if not exact.numel():
        return 0.0
    eps = torch.finfo(torch.float32).eps
    floor = float(exact.abs().max()) * (torch.finfo(x.dtype).eps + 8 * eps)
    gain = 1 / (x.double().reshape(x.shape[0], groups, -1).var(2, correction=0) + 1e-5).sqrt().min()
    gain *= 1 if weight is None else weight.abs().max()
    gain *= 1 if scale is None else (1 + scale).abs().max()
    return floor + eps * float(x.abs().max() * gain)


def small_rows(samples: int, groups: int, width: int, pixels: int) -> list[Rows]:
    """Plans of a small map as large ones have them: whole groups; three parts of which the last is shorter, of several
    tiles; more, added up by a launch of their own; one channel block of the last launch sees few groups."""
    device = Device("sm_90", 2, 1 << 20)
    whole = rows_plan(samples, groups, width, pixels, device=device, whole=True)
    parts = rows_plan(samples, groups, width, pixels, device=device, whole=False)
    assert whole is not None
    assert parts is not None
    found = [whole, parts]
    for count, merged in ((3, False), (7, True)):
        part_pixels = pixels // count + 1
        cut = -(-pixels // part_pixels)
        small = parts._replace(block_pixels=2, part_pixels=part_pixels, parts=cut, merged=merged, apply_pixels=4)
        channels = max(2, 1 << (width * groups // 3).bit_length() - 1)
        touched = 1 << ((channels - 1) // width + 1).bit_length()
        found.append(small._replace(apply_channels=channels, touched_groups=touched))
    part_pixels = -(-found[-1].part_pixels // 4) * 4  # whole tiles of the last launch
    runs = -(-pixels // part_pixels)
    found.append(found[-1]._replace(part_pixels=part_pixels, parts=runs, backwards=True))
    return found


def rows(every: str = "") -> None:
    """Channels-last maps of odd sizes, and two of them side by side, by every plan. every: not a choice of types."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    shapes = [((2, 12, 5, 7), 3), ((1, 40, 9, 6), 4), ((2, 3, 6, 6), 1), ((1, 6, 3, 5), 6), ((1, 30, 1, 11), 3)]
    types = list(itertools.product([torch.float32, torch.float16], [0, 2, 5]))
    some = [(given, types[(0, 4)[number % 2]]) for number, given in enumerate(shapes)]
    for (shape, groups), (dtype, beside) in itertools.product(shapes, types) if every else some:
        if beside and shape[1] - beside < 2:
            continue  # a map of one channel is no channels-last one
        x = 20 + 10 * torch.arange(shape[1])[:, None, None] / shape[1] + torch.randn(shape)
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        first, skip = (x, None) if not beside else x.split([shape[1] - beside, beside], 1)
        if skip is not None:
            first, skip = (t.contiguous(memory_format=torch.channels_last) for t in (first, skip))
        weight, bias = torch.randn(2, shape[1]).to(dtype)
        scale, shift = torch.randn(2, *shape[:2]).to(dtype)
        present = shape[1] == 12
        options = dict(scale=scale, shift=shift) if present else dict(activation="none" if shape[1] == 6 else "silu")
        vectors = (weight, bias) if shape[1] != 3 else (None, None)
        doubles = {name: t.double() if isinstance(t, Tensor) else t for name, t in options.items()}
        theirs = reference(x, groups, *vectors, **options)
        exact = reference(x.double(), groups, *(t if t is None else t.double() for t in vectors), **doubles)
        floor = rounding(exact, x, groups, vectors[0], scale if present else None)
        plans = small_rows(shape[0], groups, shape[1] // groups, shape[2] * shape[3])
        for cut in [None, *plans]:
            ours = group_norm_silu(first, groups, *vectors, **options, skip=skip, cut=cut)
            assert ours.is_contiguous(memory_format=torch.channels_last)
            assert_no_worse(ours, theirs, exact, floor, shape, groups, dtype, beside, cut)
            again = group_norm_silu(first, groups, *vectors, **options, skip=skip, cut=cut)
            assert torch.equal(ours, again)


def small_runs(samples: int, groups: int, numbers: int, pixels: int) -> list[Flat]:
    """Plans of a small contiguous map as large ones have them: a group each, of several tiles; parts of which the last
    is shorter, two groups a launch; tiles of one channel where they divide the pixels."""
    found = []
    for block in (16, 64):
        even, tiles = pixels % block == 0, -(-numbers // block)
        found.append(Flat(True, block, even, tiles, 1, samples * groups))
        each = -(-tiles // 3)
        found.append(Flat(False, block, even, each, -(-tiles // each), 2))
    return found


def runs() -> None:
    """Contiguous maps of odd sizes, by every plan; the same call gives the same bits twice."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    shapes = [((2, 12, 5, 7), 3), ((1, 3, 8, 8), 1), ((1, 6, 4, 4), 3), ((3, 20, 1, 11), 2), ((2, 8), 2)]
    of_types = itertools.product([*shapes, ((1, 4, 3, 5, 2), 2)], [torch.float32, torch.float16])
    for number, ((shape, groups), dtype) in enumerate(of_types):
        present = number % 3 < 2
        x = (20 + torch.randn(shape)).to(dtype)
        weight, bias = torch.randn(2, shape[1]).to(dtype) if present else (None, None)
        options = dict(zip(("scale", "shift"), torch.randn(2, *shape[:2]).to(dtype))) if present else {}
        activation = "silu" if present else "none"
        doubles = [None if t is None else t.double() for t in (weight, bias)]
        theirs = reference(x, groups, weight, bias, activation=activation, **options)
        wide = {name: t.double() for name, t in options.items()}
        exact = reference(x.double(), groups, *doubles, activation=activation, **wide)
        floor = rounding(exact, x, groups, weight, options.get("scale"))
        pixels = x[0, 0].numel()
        for cut in small_runs(shape[0], groups, shape[1] // groups * pixels, pixels):
            results = [
                group_norm_silu(x, groups, weight, bias, activation=activation, **options, cut=cut) for _ in range(2)
            ]
            assert results[0].is_contiguous()
            assert_no_worse(results[0], theirs, exact, floor, shape, groups, dtype, present, cut)
            assert torch.equal(*results)


def far_means() -> None:
    """Means far from 0, numbers that are all the same, an outlier where a tile begins, NaN in a group."""
    torch.manual_seed(0)
    base = torch.randn(1, 12, 8, 9)
    outlier = base.clone()
    outlier[0, :, 0, 0] = 1e4
    slope = base + 100 * torch.arange(12.0)[:, None, None] + torch.linspace(-50, 50, 8)[:, None]
    plans = [*small_rows(1, 3, 4, 72), *small_runs(1, 3, 4 * 72, 72)]
    inputs = (1000 + base, -30 + 1e-2 * base, 1e-4 * base, 1e4 * base, torch.full_like(base, 5.0), outlier, slope)
    for number, given in enumerate(inputs):
        theirs, exact = reference(given, 3), reference(given.double(), 3)
        for cut in plans[number % 2 :: 2]:  # every plan has some of each kind
            x = given.contiguous() if isinstance(cut, Flat) else given.contiguous(memory_format=torch.channels_last)
            assert_no_worse(group_norm_silu(x, 3, cut=cut), theirs, exact, rounding(exact, x, 3), float(x[0, 0, 0, 0]))
    base[0, 5, 3, 3] = float("nan")
    for cut in plans:
        x = base if isinstance(cut, Flat) else base.contiguous(memory_format=torch.channels_last)
        bad = group_norm_silu(x, 3, cut=cut).isnan().flatten(2).any(2)
        assert bad[0].nonzero().flatten().tolist() == [4, 5, 6, 7]


def gradients() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    cases = [((2, 6, 5, 7), 3), ((1, 4, 30, 35), 2), ((1, 8, 3), 4), ((2, 300, 3, 3), 2), ((0, 4, 2, 2), 2)]
    for (shape, groups), dtype, last in itertools.product(cases, [torch.float32, torch.float16], [False, True]):
        if last and len(shape) != 4:
            continue
        for present in ("", "weight bias scale shift", "weight shift", "bias scale"):
            if "bias" in present and "weight" not in present:
                present = "scale"
            if present != "weight bias scale shift" and (dtype == torch.float16 or shape[1] == 300):
                continue
            layout = torch.channels_last if last else torch.contiguous_format
            x, grad = ((mean + torch.randn(shape)).to(dtype).contiguous(memory_format=layout) for mean in (20, 0))
            sizes = {"weight": shape[1:2], "bias": shape[1:2], "scale": shape[:2], "shift": shape[:2]}
            options = {name: torch.randn(sizes[name]).to(dtype) for name in present.split()}
            activation = "none" if present == "weight shift" else "silu"
            cut = parts(x) if len(shape) == 4 and "weight" in options else None
            ours = group_norm_silu_backward(grad, x, groups, activation=activation, cut=cut, **options)
            theirs = by_autograd(x, groups, options, activation, grad)
            doubles = {name: t.double() for name, t in options.items()}
            exact = by_autograd(x.double(), groups, doubles, activation, grad.double())
            # As for ada_layer_norm: eps times the largest factors, times what the rounding of the mean is made of.
            size, eps = 1.0, torch.finfo(torch.float32).eps
            if x.numel():
                grouped = x.double().reshape(shape[0], groups, -1)
                deviation = (grouped.var(2, correction=0) + 1e-5).sqrt().min()
                normal = ((grouped - grouped.mean(2, keepdim=True)).abs().max() / deviation).clamp_min(1)
                for t in (grad, *(1 + t.abs() for t in options.values())):
                    size *= float(t.abs().max().double().clamp_min(1))
                size *= float((1 + x.abs().max() / deviation) * (1 / deviation).clamp_min(1) * normal**2)
            for name, want in exact.items():
                terms, largest = 1.0, 0.0
                if want.numel():
                    terms, largest = 1 if name == "x" else x.numel() / want.numel(), float(want.abs().max())
                floor = largest * torch.finfo(dtype).eps + terms**0.5 * eps * size
                assert_no_worse(ours[name], theirs[name], want, floor, shape, groups, dtype, last, present, name)


def by_autograd(x: Tensor, groups: int, options: dict[str, Tensor], activation: str, grad: Tensor) -> dict[str, Tensor]:
    leaves = {"x": x} | options
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    out = reference(num_groups=groups, activation=activation, **leaves)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad)))


def compiles(target: str) -> None:
    from fastdiff.kernels.ahead_of_time.catalogue import tensor
    from fastdiff.kernels.ahead_of_time.compile import TARGETS, launches
    from fastdiff.kernels.group_norm_silu.variants import launched, levels, runs

    for last, dtype in ((False, "fp32"), (True, "bf16")):
        adaptive, plain = (launched(target, dtype, channels_last=last, adaptive=there) for there in (True, False))
        flat = {"flat", "flat_statistics", "flat_apply"}
        more = {"rows_whole", "rows_statistics", "rows_merge", "rows_apply"} if last else flat
        assert adaptive.keys() == {"whole", "statistics", "apply", "sums", "dx"} | more
        for kernel, launch in (adaptive | {"apply": plain["apply"]}).items():
            stack = 8 if (target, kernel, dtype) == ("sm_100", "dx", "bf16") else 0  # docs/notes/gpu-norms.md
            assert_fits(launch, last, dtype, stack=stack)
    for dtype in ("fp32", "fp16"):
        for launch in levels(target, dtype):
            assert_fits(launch, dtype)
        large = tensor(dtype, 1, 128, 512, 512, memory_format=torch.channels_last)
        device = TARGETS[target].device
        best = rows_plan(1, 32, 4, 512 * 512, device=device)
        assert best is not None
        back = best._replace(backwards=True)
        assert back in other_rows(best, 1, 32, 4, 512 * 512, device._replace(l2_bytes=50 << 20))
        for launch in launches(target, group_norm_silu, large, 32, *[tensor(dtype, 128)] * 2, cut=back):
            assert_fits(launch, dtype, back)
        for shape in ((2, 320, 64, 64), (2, 320, 33, 31)):
            for launch in runs(target, dtype, shape):
                assert_fits(launch, dtype, shape)
