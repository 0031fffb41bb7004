"""Sampling loops of optimized models: one graph for the whole loop, and none that is older than the model."""

import functools
import threading

import pytest
import torch
from graph_models import CHANGES, SAME, Net, add_adapter, inputs, set_scale
from graph_stand_in import cuda_graphs, failing  # noqa: F401
from tape import take_the_place_of_cuda

import fastdiff
from fastdiff.compiler.capture import FastGraph
from fastdiff.runtime import graphs

OPTIONS = dict(schedule="scaled-linear", prediction="eps", steps=4, solver="dpmpp-2m", guidance=3.0)


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch, cuda_graphs):  # noqa: F811
    take_the_place_of_cuda(monkeypatch)


def prompts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return dict(
        cond={"text": torch.randn(1, 7, 32, generator=generator)},
        uncond={"text": torch.randn(1, 7, 32, generator=generator)},
    )


def run(model, seed=0, **options):
    return fastdiff.sample(model, (1, 4, 8, 8), seed=seed, **prompts(seed), **{**OPTIONS, **options})


def right(model, seed=0, **options):
    """By launches of the original."""
    call, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        with fastdiff.use("reference"):
            return run(model, seed, **options)
    finally:
        model._compiled_call_impl = call


def check(model, seed=0):
    found = run(model, seed)
    torch.testing.assert_close(found, right(model, seed), rtol=1e-3, atol=1e-4)
    return found


def test_the_second_run_is_one_graph(cuda_graphs):  # noqa: F811
    """Its model calls are launched inside, and nothing in it does what a capture forbids."""
    net = fastdiff.optimize(Net().eval())
    for seed in range(5):
        check(net, seed)
        assert [graph.replays for graph in cuda_graphs] == ([seed] if seed else [])
    assert graphs.explain(net) == ["a CUDA graph"]


@torch.no_grad()
def test_a_captured_graph_is_launched_within_a_capture(cuda_graphs, monkeypatch):  # noqa: F811
    """Called without Dynamo, which steps aside while the stand-in sees the operators."""
    net, seen = fastdiff.optimize(Net().eval()), []
    monkeypatch.setattr(FastGraph, "observer", lambda graph, values: seen.append((graph, values)))
    for seed in range(4):
        net(*inputs(seed))
    fast, values = seen[-1]
    expected, recording, found = fast(*values), graphs.Recording(), []
    made = len(cuda_graphs)
    graphs.capture(recording, lambda: found.append(fast(*values)), torch.device("cpu"))
    assert recording.reason is None
    recording.graph.replay()
    assert len(cuda_graphs) == made + 1
    torch.testing.assert_close(found[0][0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", CHANGES)
def test_a_graph_of_a_loop_follows_the_model(way):
    net = fastdiff.optimize(Net().eval())
    with torch.no_grad():
        before = [check(net) for _ in range(3)][-1]
        CHANGES[way](net)
        after = [check(net) for _ in range(3)][-1]
    same = torch.allclose(after, before, rtol=5e-3, atol=5e-3)
    assert same == (way in SAME)


def test_adapter_scales_are_followed():
    net = fastdiff.optimize(Net().eval())
    add_adapter(net)
    with torch.no_grad():
        for _ in range(2):
            before = [check(net) for _ in range(3)][-1]
            set_scale(net)
            assert not torch.allclose(check(net), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("change", [fastdiff.optimize, fastdiff.restore, fastdiff.refresh])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_graph_from_before_is_not_replayed(change, wrapped, cuda_graphs):  # noqa: F811
    net = Net().eval()
    if change is not fastdiff.optimize:
        fastdiff.optimize(net)
    model = functools.partial(lambda net, x, t, text: net(x, t, text), net) if wrapped else net
    for _ in range(3):
        run(model)
    (old,) = cuda_graphs
    replays = old.replays
    change(net)
    for _ in range(3):
        found = run(model)
    torch.testing.assert_close(found, right(net), rtol=1e-3, atol=1e-4)
    assert old.replays == replays
    assert len(cuda_graphs) == 2


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError])
def test_a_failed_capture_falls_back(cuda_graphs, error):  # noqa: F811
    net = fastdiff.optimize(Net().eval())
    run(net)
    with failing(error("in the middle"), 20), pytest.warns(graphs.GraphWarning, match="in the middle"):
        check(net)
    assert not graphs.within()
    check(net)
    assert cuda_graphs == []
    assert "in the middle" in graphs.explain(net)[0]
    fastdiff.refresh(net)
    for seed in range(3):
        check(net, seed)
    assert graphs.explain(net) == ["a CUDA graph"]


def test_an_interrupted_capture_is_raised_and_tried_again(cuda_graphs):  # noqa: F811
    net = fastdiff.optimize(Net().eval())
    run(net)
    with failing(KeyboardInterrupt(), 20), pytest.raises(KeyboardInterrupt):
        run(net)
    assert not graphs.within()
    for seed in range(2):
        check(net, seed)
    assert len(cuda_graphs) == 1


def test_a_loop_that_is_no_graph_has_graphs_of_its_calls(cuda_graphs):  # noqa: F811
    net = fastdiff.optimize(Net().eval())
    states = []
    found = run(net, callback=lambda step, state: states.append(state.clone()))
    assert len(states) == OPTIONS["steps"]
    torch.testing.assert_close(found, right(net), rtol=1e-3, atol=1e-4)
    assert [graph.replays for graph in cuda_graphs] == [OPTIONS["steps"] - 1]


def test_two_threads_sample():
    net = fastdiff.optimize(Net().eval())
    expected, wrong = {seed: right(net, seed) for seed in range(3)}, []
    run(net)

    def work(seed):
        for _ in range(3):
            if not torch.allclose(run(net, seed), expected[seed], rtol=1e-3, atol=1e-3):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
