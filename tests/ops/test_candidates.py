"""Who computes a call on a GPU: candidates of the operators, tables by architecture, what takes the place of a failure.

No GPU: devices are stand-ins, and candidates are called with tensors on the CPU."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastdiff
from fastdiff.ops import deciding
from fastdiff.ops.candidates import attention as attention_candidates
from fastdiff.runtime import candidates, device, gpu_table, triton, tuning
from fastdiff.runtime.candidates import TORCH, Candidate

ops = fastdiff.ops
pytestmark = pytest.mark.usefixtures("standing_in")
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100", "sm_999")


def heads(*shape, dtype=torch.float16):
    q = torch.randn(shape, dtype=dtype)
    return ops.attention.Arguments(q, q, q)


def on(monkeypatch, architecture, gluon=True):
    """A device of that architecture, whose kernels all exist and give what PyTorch gives; gluon: so does Hopper's."""
    tables = "gfx942" if architecture.startswith("gfx") else "sm_90" if architecture == "sm_90" else "sm_80"
    monkeypatch.setattr(device, "ABSENT", device.Device(tables, 132, 50 << 20, architecture))
    cudnn = [] if architecture in ("sm_75", "gfx942", "gfx1100") else ["cudnn"]
    theirs = [Candidate(name, ops.attention.reference) for name in (*cudnn, "flash", "efficient")]
    monkeypatch.setattr(attention_candidates, "_by_torch", lambda a: theirs)
    monkeypatch.setattr("fastdiff.kernels.attention.hopper.missing", lambda: None if gluon else "no Gluon")
    for op in (ops.attention, ops.group_norm_silu, ops.ada_layer_norm):
        old = "the GPU is too old" if architecture == "sm_75" else None
        monkeypatch.setattr(op, "unsupported_by_triton", lambda a, old=old: old)
        monkeypatch.setattr(op, "triton", lambda a, cut=None, op=op: op.reference(a))


def lines():
    return "\n".join(candidates.lines())


def test_candidates_of_attention_in_order(monkeypatch):
    on(monkeypatch, "sm_90")
    names = [c.name for c in ops.attention.candidates(heads(1, 2, 16, 64))]
    assert names[:2] == ["cudnn", "triton"]
    assert {"triton 128x64/8/3", "few_keys", "gluon", "torch", "flash", "efficient"} <= {*names}
    assert len(names) == len({*names})
    on(monkeypatch, "sm_80")
    assert ops.attention.candidates(heads(1, 2, 16, 64))[0].name == "torch"


def test_kernels_for_few_keys_and_for_hopper_are_candidates_where_they_can_run(monkeypatch):
    on(monkeypatch, "sm_80")
    a = heads(1, 2, 16, 64)
    names = [c.name for c in ops.attention.candidates(a)]
    assert "few_keys" in names
    assert not any(name.startswith("gluon") for name in names)
    on(monkeypatch, "sm_90")
    assert [c.name for c in ops.attention.candidates(a) if "gluon" in c.name] == [
        "gluon",
        "gluon 2x64x128/2 persistent",
    ]
    assert "few_keys" not in [c.name for c in ops.attention.candidates(heads(1, 2, 129, 64))]
    single = heads(1, 2, 16, 64, dtype=torch.float32)
    assert not {"few_keys", "gluon"} & {c.name for c in ops.attention.candidates(single)}


def test_where_gluon_is_missing_explain_says_so(monkeypatch):
    on(monkeypatch, "sm_90")
    absent = "Triton 3.5.1 has no Gluon as the kernel asks for it (3.6 has)"
    monkeypatch.setattr("fastdiff.kernels.attention.hopper.missing", lambda: absent)
    monkeypatch.setenv("FASTDIFF_TUNE", "0")
    assert ops.attention.decide(heads(1, 2, 160, 160)).name == "triton 64x64/4/2"
    assert "not gluon: Triton 3.5.1 has no Gluon" in lines()


def test_a_plan_of_another_kernel_has_the_output_alone(monkeypatch):
    class Cut:
        def prepare(self, q, k, v, *, scale, precision):
            return lambda q, k, v: (q + k + v) * scale

    q = torch.ones(1, 1, 2, 4)
    out, lse, maps = ops.attention.plan(ops.attention.Arguments(q, q, q, scale=0.5), Cut())(
        ops.attention.Arguments(q, q, q)
    )
    assert torch.equal(out, q * 1.5)
    assert lse is maps is None


def test_candidates_of_attention_with_masks_maps_and_odd_heads(monkeypatch):
    on(monkeypatch, "sm_90")
    a = heads(1, 2, 16, 64)
    masked = a._replace(mask=torch.ones(16, 16, dtype=torch.bool))
    assert [c.name for c in ops.attention.candidates(masked)] == ["triton", "torch"]
    assert [c.name for c in ops.attention.candidates(a._replace(return_maps=True))] == ["triton", "torch"]
    monkeypatch.undo()
    for odd in (heads(1, 2, 16, 20), heads(1, 2, 0, 64), heads(1, 2, 16, 64)._replace(v=torch.zeros(1, 2, 16, 8))):
        assert attention_candidates._by_torch(odd) == []


@pytest.mark.parametrize(
    ("shape", "keys", "chosen"),
    [
        ((2, 8, 4096, 40), 4096, "cudnn"),
        ((2, 10, 4096, 64), 4096, "cudnn"),
        ((2, 24, 4096, 128), 4096, "cudnn"),
        ((2, 8, 1024, 80), 1024, "cudnn"),
        ((2, 16, 1024, 72), 1024, "cudnn"),
        ((2, 8, 256, 160), 256, "triton 64x64/4/2"),
    ],
)
def test_what_was_measured_is_in_the_table(shape, keys, chosen, monkeypatch):
    on(monkeypatch, "sm_90", gluon=False)
    monkeypatch.setenv("FASTDIFF_TUNE", "1")
    q = torch.empty(1, dtype=torch.float16).expand(shape)
    k = torch.empty(1, dtype=torch.float16).expand(*shape[:2], keys, shape[3])
    found = ops.attention.decide(ops.attention.Arguments(q, k, k))
    assert (found.name, found.settled) == (chosen, True)
    assert "from the table (" in lines()
    assert "H100 80GB HBM3, in a graph)" in lines()


def test_a_row_does_not_decide_about_a_kernel_that_was_not_measured(monkeypatch, standing_in):
    on(monkeypatch, "sm_90")
    monkeypatch.setenv("FASTDIFF_TUNE", "1")
    monkeypatch.setattr(standing_in, "device_type", "cuda", raising=False)  # which cannot be timed here
    found = ops.attention.decide(heads(1, 2, 160, 160))
    assert (found.name, found.settled) == ("triton 64x64/4/2", False)  # until the kernels can be timed
    assert "from the table (" not in lines()


@pytest.mark.parametrize("row", gpu_table.ROWS, ids=lambda row: f"{row.op}-{row.bounds}")
def test_rows_name_candidates_times_and_sources(row, monkeypatch):
    assert row.op in ops.OPS
    assert row.source.endswith((", in a graph", ", launched singly"))
    assert f"{row.candidate.split()[0]} " in row.measured
    assert " us" in row.measured
    assert all(least < below for _, least, below in row.bounds)
    for other in gpu_table.ROWS:  # no two rows hold for one call
        if other is not row and other[:3] == row[:3]:
            apart = [(a, b) for a in row.bounds for b in other.bounds if a[0] == b[0]]
            assert any(a[2] <= b[1] or b[2] <= a[1] for a, b in apart), (row, other)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("setting", ["0", "1"])
def test_other_architectures_take_the_next_best_and_say_so(architecture, setting, monkeypatch, standing_in):
    on(monkeypatch, architecture, gluon=False)
    monkeypatch.setenv("FASTDIFF_TUNE", setting)
    torch.manual_seed(0)
    if setting == "1":
        monkeypatch.setattr(standing_in, "device_type", "cuda", raising=False)  # which cannot be timed here
    a = heads(1, 2, 160, 160)
    monkeypatch.setattr(gpu_table, "ROWS", tuple(row for row in gpu_table.ROWS if row.architecture == "sm_90"))
    row, _ = gpu_table.find("attention", architecture, "half", {"dim": 160, "queries": 160, "keys": 160})
    assert (row is not None) == (architecture == "sm_90")
    found = ops.attention.decide(a)
    assert (found.settled, len(candidates.lines())) == (setting == "0" or architecture == "sm_90", 1)
    assert ("from the table (" in lines()) == (architecture == "sm_90")
    assert ("not measured" in lines()) == (architecture != "sm_90")
    if architecture == "sm_75":
        assert not found.name.startswith("triton")
        assert "not triton: the GPU is too old" in lines()
    torch.testing.assert_close(ops.attention.by_candidate(a)[0], ops.attention.reference(a)[0])


def test_a_card_without_triton_takes_torchs_own(monkeypatch):
    monkeypatch.setattr(triton, "too_old", lambda device: "the GPU has compute capability 7.5")
    with FakeTensorMode():
        x = torch.empty(2, 64, 8, 8, device="cuda", dtype=torch.float16)
        a = ops.group_norm_silu.Arguments(x, 8)
        assert [c.name for c in ops.group_norm_silu.candidates(a)] == [TORCH]
        monkeypatch.setattr(triton, "MISSING", "Triton 3.1 is older than 3.2")
        assert [c.name for c in ops.group_norm_silu.candidates(a)] == [TORCH]


# ---- signatures ----


def test_what_decides_is_in_the_signature():
    op, x = ops.group_norm_silu, torch.randn(1, 8, 4, 4)
    weight, storage = torch.ones(8), torch.randn(129)

    def of(x, *rest, **options):
        return deciding.signature(op, op.Arguments(x, *rest, **options))

    base = of(x, 2)
    assert of(torch.zeros(1, 8, 4, 4), 2) == base
    assert of(x, 2, eps=1e-6) == base
    different = [
        of(x.half(), 2), of(x.to(memory_format=torch.channels_last), 2), of(x, 4), of(x, 2, weight),
        of(x, 2, activation="none"), of(torch.randn(2, 8, 4, 4), 2), of(storage[1:].view(1, 8, 4, 4), 2),
    ]  # fmt: skip
    assert len({base, *different}) == 1 + len(different)


def test_settings_of_precision_are_in_the_signature():
    op = ops.linear
    a = op.Arguments(torch.zeros(1, 2, 3), torch.zeros(4, 3))
    before = deciding.signature(op, a)
    torch.set_float32_matmul_precision("high")
    try:
        assert deciding.signature(op, a) != before
        half = op.Arguments(*(t.half() for t in a[:2]))
        assert "tf32" not in deciding.signature(op, half)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_precision_by_either_of_torchs_settings():
    code = """
import torch
from fastdiff.runtime.triton import convolution_precision, precision
said = [(precision(), convolution_precision())]
torch.set_float32_matmul_precision("high")
said.append((precision(), convolution_precision()))
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    said.append((precision(), convolution_precision()))
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    said.append((precision(), convolution_precision()))
print(said)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [("ieee", "tf32"), ("tf32", "tf32"), ("ieee", "ieee"), ("tf32", "ieee")]
    new = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    assert result.stdout.strip() == str(expected if new else expected[:2])


def test_a_decision_is_asked_for_once(monkeypatch):
    mine = Candidate("mine", ops.linear.reference)
    monkeypatch.setitem(deciding.FINDERS, "linear", lambda op, a: deciding.Found([mine, Candidate(TORCH, mine.run)]))
    a = ops.linear.Arguments(torch.zeros(1, 2, 3), torch.zeros(4, 3))
    first = ops.linear.decide(a)
    monkeypatch.setattr(tuning.tuner, "decide", lambda problem: pytest.fail("asked again"))
    assert ops.linear.decide(a) is first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_candidates_of_an_operator_are_checked_and_timed(dtype, monkeypatch, standing_in):
    monkeypatch.setenv("FASTDIFF_TUNE", "1")
    standing_in.seconds = {"good": 2e-6, "wrong": 1e-6, TORCH: 3e-6}

    def named(name, compute):
        return Candidate(name, lambda a: (standing_in.ran.append(name), compute(a))[1])

    linear = ops.linear
    wrong = named("wrong", lambda a: linear.reference(a) * 1.05)
    found = [named("good", linear.reference), wrong, named(TORCH, linear.reference)]
    monkeypatch.setitem(deciding.FINDERS, "linear", lambda op, a: deciding.Found(found))
    a = linear.Arguments(torch.zeros(1, 2, 3, dtype=dtype), torch.zeros(4, 3, dtype=dtype))
    with pytest.warns(UserWarning, match="linear .* x 1x2x3 weight 4x3: wrong is not taken"):
        assert linear.decide(a).name == "good"
    assert standing_in.timed == ["good", TORCH]


# ---- candidates of PyTorch's ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_epilogues_and_layouts_of_torchs_own_agree(dtype, monkeypatch, standing_in):
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 5, 16, dtype=dtype), torch.randn(8, 16, dtype=dtype), torch.randn(8, dtype=dtype)
    image, kernel = torch.randn(2, 4, 6, 6, dtype=dtype), torch.randn(8, 4, 3, 3, dtype=dtype)
    residual = torch.randn(2, 5, 8, dtype=dtype)
    linear, conv2d = ops.linear, ops.conv2d
    cases = [
        (linear, linear.Arguments(x, w, b, activation="gelu_tanh"), ["torch", "cublas with gelu"]),
        (linear, linear.Arguments(x, w, residual=residual), ["torch", "cublas with residual"]),
        (linear, linear.Arguments(x, w, b, residual=residual), ["torch"]),
        (linear, linear.Arguments(x, w, b, activation="gelu"), ["torch"]),
        (linear, linear.Arguments(x, w, b, activation="gelu_tanh", gate=residual), ["torch"]),
        (linear, linear.Arguments(x, w, b, activation="gelu_tanh", weight_2=w, bias_2=b), ["torch"]),
        (linear, linear.Arguments(x, w, b, activation="gelu_tanh", glu=True), ["torch"]),
        (
            conv2d,
            conv2d.Arguments(image, None, kernel, b),
            ["torch", "torch channels-last"][: 3 - x.element_size() // 2],
        ),
        (conv2d, conv2d.Arguments(image.to(memory_format=torch.channels_last), None, kernel), ["torch"]),
    ]
    monkeypatch.setenv("FASTDIFF_TUNE", "1")
    for op, a, names in cases:
        found = op.candidates(a)
        assert [c.name for c in found] == names
        untouched = [t.clone() for t in op.tensors(a) if t is not None]
        for candidate in found:
            if candidate.name == "cublas with gelu":
                continue  # on the CPU it is GELU without tanh; on a GPU it is checked before it is taken
            exact = op.reference(type(a)(*(t.double() if isinstance(t, torch.Tensor) else t for t in a)))
            ours, theirs = ((y.double() - exact).abs().max() for y in (candidate.run(a), op.reference(a)))
            assert ours <= 2 * theirs + 4 * torch.finfo(dtype).eps * exact.abs().max(), (candidate.name, a)
        assert all(torch.equal(x, y) for x, y in zip(untouched, (t for t in op.tensors(a) if t is not None)))


def test_why_a_kernel_of_ours_does_not_follow_a_product_is_said(monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE", "0")
    monkeypatch.setattr(triton, "MISSING", "Triton is not installed")
    image, kernel, bias = torch.randn(1, 4, 6, 6), torch.randn(8, 4, 3, 3), torch.randn(8)
    assert ops.conv2d.decide(ops.conv2d.Arguments(image, None, kernel, bias)).name == TORCH
    assert "not cudnn, sum by triton: Triton is not installed" in lines()
    x, weight = torch.randn(1, 4, 6), torch.randn(8, 6)
    assert ops.linear.decide(ops.linear.Arguments(x, weight, activation="gelu", glu=True)).name == TORCH
    assert "not cublas, gate by triton: Triton is not installed" in lines()
    monkeypatch.setattr(triton, "MISSING", None)
    monkeypatch.setattr(triton, "INTERPRETED", False)
    wide = ops.conv2d.Arguments(*(None if t is None else t.double() for t in (image, None, kernel, bias)))
    assert ops.conv2d.decide(wide).name == TORCH
    assert "not cudnn, sum by triton: the kernel takes no float64" in lines()


def test_the_oracle_of_attention_goes_through_the_heads(monkeypatch):
    a = heads(2, 5, 7, 16, dtype=torch.float64)
    for mask in (None, torch.rand(2, 1, 7, 7) < 0.8, torch.randn(7, 7, dtype=torch.float64)):
        given = a._replace(mask=mask)
        for limit in (1, 100):
            monkeypatch.setattr(attention_candidates, "MAX_SCORES", 49 * limit)
            (found,) = attention_candidates.oracle(ops.attention, given)
            torch.testing.assert_close(found, ops.attention.reference(given)[0])
