"""A call on a GPU takes the candidate that is decided on, and the next best where that fails. No GPU is needed."""

import sys
import warnings

import pytest
import torch
from launches import as_on_gpu
from torch._subclasses import FakeTensorMode

import fastdiff
from fastdiff.ops import deciding
from fastdiff.ops import op as op_module
from fastdiff.runtime import candidates, choice, dispatcher
from fastdiff.runtime.candidates import TORCH, Candidate

ops = fastdiff.ops
pytestmark = pytest.mark.usefixtures("standing_in")


@pytest.mark.parametrize("settled", [True, False])
def test_a_call_on_a_gpu_asks_for_a_candidate_until_it_is_settled(settled, monkeypatch):
    asked = []

    def decide(self, a):
        asked.append(self.name)
        return Candidate("mine", lambda a: a[0], settled=settled)

    monkeypatch.setattr(op_module.Op, "decide", decide)
    norm, conv = as_on_gpu(ops.group_norm_silu), as_on_gpu(ops.conv2d)
    x, weight = torch.zeros(2, 64, 8, 8, dtype=torch.float16), torch.zeros(64, 64, 3, 3, dtype=torch.float16)
    for _ in range(2):
        assert norm(x, 8) is x
        assert conv(x, weight) is x
    assert asked == ["group_norm_silu", "conv2d"] * (1 if settled else 2)
    with fastdiff.use("reference"):
        assert norm(x, 8) is not x
    before = len(asked)
    ops.group_norm_silu(torch.zeros(2, 64, 8, 8), 8)
    assert norm(x.float().requires_grad_(), 8).grad_fn is not None
    assert len(asked) == before


def test_another_layout_is_another_choice(monkeypatch):
    asked = []

    def decide(self, a):
        asked.append(a.weight.stride())
        return Candidate("mine", lambda a: a[0])

    monkeypatch.setattr(op_module.Op, "decide", decide)
    conv = as_on_gpu(ops.conv2d)
    x, weight = torch.zeros(2, 8, 4, 4, dtype=torch.float16), torch.zeros(8, 8, 3, 3, dtype=torch.float16)
    last = weight.contiguous(memory_format=torch.channels_last)
    for each in (weight, last, weight, last):
        assert conv(x, each) is x
    assert asked == [weight.stride(), last.stride()]


def test_a_kept_candidate_that_fails_gives_way(monkeypatch):
    op, x, failing = as_on_gpu(ops.group_norm_silu), torch.randn(1, 8, 3, 3), []

    def run(a):
        if failing:
            raise RuntimeError("no kernel image")
        return a.x

    finder(monkeypatch, "group_norm_silu", Candidate("triton", run))
    assert op(x, 2) is x
    failing.append(True)
    expected = ops.group_norm_silu.reference(op.Arguments(x, 2))
    with pytest.warns(UserWarning, match="group_norm_silu: triton failed"):
        assert torch.equal(op(x, 2), expected)
    failing.clear()
    assert torch.equal(op(x, 2), expected)  # it is not tried again


def test_a_profiled_call_runs_what_others_run(monkeypatch):
    x = torch.zeros(2, 3)
    assert not dispatcher.is_only_profiled([x])
    with torch.profiler.profile():
        assert dispatcher.is_only_profiled([x, None])
        assert not dispatcher.is_only_profiled([x.clone().requires_grad_()])
        with FakeTensorMode():
            assert not dispatcher.is_only_profiled([x])


def broken(error):
    def run(a):
        raise error

    return Candidate("triton", run)


def finder(monkeypatch, name, *found):
    """The operator's candidates: these, then PyTorch."""
    plain = Candidate(TORCH, ops.OPS[name].reference)
    monkeypatch.setitem(deciding.FINDERS, name, lambda op, a: deciding.Found([*found, plain]))


@pytest.mark.parametrize(
    "error", [RuntimeError("PassManager::run failed\nat line 3"), OSError("no compiler"), NotImplementedError()]
)
def test_a_kernel_that_fails_gives_way_with_one_warning(error, monkeypatch):
    finder(monkeypatch, "group_norm_silu", broken(error))
    a = ops.group_norm_silu.Arguments(torch.randn(1, 8, 3, 3), 2)
    with pytest.warns(UserWarning, match="group_norm_silu: triton failed") as caught:
        ours = ops.group_norm_silu.by_candidate(a)
    assert torch.equal(ours, ops.group_norm_silu.reference(a))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ops.group_norm_silu.by_candidate(a), ours)
    (line,) = candidates.lines()
    assert f"not triton: {type(error).__name__}" in line
    assert line in str(fastdiff.explain())


def test_candidates_fail_one_after_another(monkeypatch):
    failing = [Candidate(f"triton {n}", broken(RuntimeError(f"no {n}")).run) for n in range(3)]
    finder(monkeypatch, "ada_layer_norm", *failing)
    x = torch.randn(1, 4, 8)
    a = ops.ada_layer_norm.Arguments(x, x, x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(ops.ada_layer_norm.by_candidate(a), ops.ada_layer_norm.reference(a))
    assert len(caught) == 3


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("of 80 GiB"), RuntimeError("CUDA error: an illegal memory access was encountered"),
     KeyboardInterrupt()],
)  # fmt: skip
def test_what_no_other_candidate_can_mend_is_raised(error, monkeypatch):
    finder(monkeypatch, "group_norm_silu", broken(error))
    a = ops.group_norm_silu.Arguments(torch.randn(1, 8, 3, 3), 2)
    with pytest.raises(type(error)):
        ops.group_norm_silu.by_candidate(a)


def test_an_error_of_torchs_own_is_raised(monkeypatch):
    monkeypatch.setitem(
        deciding.FINDERS, "linear", lambda op, a: deciding.Found([Candidate(TORCH, broken(RuntimeError("no")).run)])
    )
    x = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match="no"):
        ops.linear.by_candidate(ops.linear.Arguments(x, torch.zeros(4, 3)))


def test_coefficients_are_not_timed(monkeypatch, standing_in):
    monkeypatch.setenv("FASTDIFF_TUNE", "1")
    x = [torch.randn(4), torch.randn(4)]
    a = ops.linear_combine.Arguments(x, [1.0, 2.0], 1)
    found = ops.linear_combine.decide(a)
    assert (found.name, found.settled, candidates.lines()) == (TORCH, False, [])
    assert torch.equal(ops.linear_combine.by_candidate(a)[0], x[0] + 2 * x[1])
    monkeypatch.setattr(
        deciding, "default", lambda op, a: deciding.Found(
            [*([] if deciding.why_triton_failed(op, x[0]) else [broken(RuntimeError("no"))]), found]
        ),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="linear_combine: Triton's kernel failed"):
        assert torch.equal(ops.linear_combine.by_candidate(a)[0], x[0] + 2 * x[1])


def test_with_a_gradient_torch_takes_the_place_of_a_failed_kernel(monkeypatch):
    """As under torch.compile, where the operator is called by its name."""
    op = ops.group_norm_silu
    monkeypatch.setattr(op_module, "runs_on_triton", lambda x: True)
    monkeypatch.setattr(op, "triton", broken(RuntimeError("no kernel image")).run)
    x = torch.randn(1, 8, 3, 3).to(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match="group_norm_silu: Triton's kernel failed") as caught:
        ours = torch.ops.fastdiff.group_norm_silu(x, 2)
    assert len(caught) == 1
    torch.testing.assert_close(ours, op.reference(op.Arguments(x, 2)))
    assert ours.stride() == x.stride()
    monkeypatch.setattr(choice, "out_of_reach", lambda name, x: None)
    assert "no kernel image" in op.unsupported_by_triton(op.Arguments(x, 2))


@pytest.mark.parametrize("fails", ["both", "backward"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_gives_way_with_its_gradients(fails, masked, monkeypatch):
    """As under torch.compile, whose graph has the operator and its gradient by name."""
    pytest.importorskip("triton")
    import fastdiff.kernels.attention as kernels

    op, failing = ops.attention, broken(RuntimeError("no kernel image")).run
    for module in (op_module, sys.modules[type(op).__module__]):
        monkeypatch.setattr(module, "runs_on_triton", lambda x: True)
    plain = op.reference
    monkeypatch.setattr(op, "triton", failing if fails == "both" else lambda a, cut=None: plain(a))
    monkeypatch.setattr(kernels, "attention_backward", lambda *args, **options: failing(args))
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    mask = torch.rand(5, 7) < 0.8 if masked else None
    gradient = torch.randn(2, 3, 5, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out, lse, _ = torch.ops.fastdiff.attention(q, k, v, mask, None, False, True)
        ours = torch.autograd.grad(out, (q, k, v), gradient)
    assert [str(w.message)[:51] for w in caught] == ["fastdiff: attention: Triton's kernel failed (Runtim"]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(out, expected)
    for x, y in zip(ours, torch.autograd.grad(expected, (q, k, v), gradient)):
        torch.testing.assert_close(x, y)
    scores = q @ k.transpose(-2, -1) * 8**-0.5
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
