"""Who computes on a GPU: every candidate is right there, times are taken in graphs and kept. Needs a GPU."""

import warnings

import pytest
import torch

import fastdiff
from fastdiff.bench import cases
from fastdiff.ops import deciding
from fastdiff.runtime import agreement, candidates, tuning

pytestmark = pytest.mark.only_gpu
ops = fastdiff.ops


@pytest.fixture(autouse=True)
def own_times(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE_FILE", str(tmp_path / "times.json"))
    monkeypatch.setattr(tuning, "tuner", tuning.Tuner())
    deciding.forget()
    candidates.forget()
    yield
    deciding.forget()
    candidates.forget()


@pytest.mark.parametrize("name", sorted(ops.OPS))
def test_every_candidate_agrees(name):
    op = ops.OPS[name]
    for case in cases.of(name, "smallest"):
        a = agreement.random_like(op.arguments(**case.make(device="cuda")))
        exact, theirs = op.plainly(agreement.widened(a), False), op.plainly(a, False)
        for candidate in op.candidates(a):
            assert agreement.disagreement(candidate.run(a), theirs, exact) is None, (candidate.name, case.type_name)


@pytest.mark.parametrize("setting", ["0", "1"])
def test_a_first_call_decides(setting, monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE", setting)
    state = torch.cuda.get_rng_state()
    q = torch.randn(2, 8, 300, 48, device="cuda", dtype=torch.float16, generator=torch.Generator("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, again = ops.attention(q, q, q), ops.attention(q, q, q)
    assert torch.equal(first, again)
    assert torch.equal(state, torch.cuda.get_rng_state())
    (line,) = candidates.lines()
    assert ("timed in" in line) == (setting == "1")
    assert line in str(fastdiff.explain())


def test_a_shape_met_in_a_capture_is_timed_later(monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE", "1")
    x = torch.randn(2, 48, 24, 24, device="cuda", dtype=torch.float16)
    graph = torch.cuda.CUDAGraph()
    with fastdiff.use("triton"):
        ops.group_norm_silu(x, 8)  # compiled
    with torch.cuda.graph(graph):
        ops.group_norm_silu(x, 8)
    assert "timed at a later call" in candidates.lines()[0]
    graph.replay()
    ops.group_norm_silu(x, 8)
    assert "timed in" in candidates.lines()[0]


def test_what_cannot_be_captured_leaves_the_process_whole():
    from fastdiff.runtime.graph_timer import GraphTimer

    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        GraphTimer()(lambda: x.sum().item(), x.device)
    assert torch.isfinite(torch.randn(4, device="cuda")).all()
    assert not torch.cuda.is_current_stream_capturing()
    seconds = GraphTimer()(lambda: x + 1, x.device)
    assert 0 < seconds < 1e-3
