"""Calls of an optimized model as CUDA graphs, with a stand-in for a graph that forbids what a capture forbids."""

import gc
import threading
import weakref

import pytest
import torch
from graph_models import CHANGES, SAME, Net, add_adapter, inputs, lines, set_scale
from graph_stand_in import StandIn, cuda_graphs, failing  # noqa: F401
from torch import nn

import fastdiff
from fastdiff.compiler import replay
from fastdiff.compiler.report import reports_of
from fastdiff.runtime import graphs

pytestmark = pytest.mark.usefixtures("cuda_graphs")


def replayed(model):
    return [line.startswith("a CUDA graph") for line in lines(model)]


def check(model, *given, **named):
    found = model(*given, **named)
    torch.testing.assert_close(found, model._call_impl(*given, **named), rtol=1e-4, atol=1e-5)
    return found


@pytest.fixture
def net():
    with torch.no_grad():
        yield fastdiff.optimize(Net().eval())


def test_the_second_call_is_captured_and_the_others_are_replays(net, cuda_graphs):  # noqa: F811
    _, t, text = inputs(0)
    for seed in range(5):
        check(net, inputs(seed)[0], t, text)
        assert [graph.replays for graph in cuda_graphs] == ([seed] if seed else [])
    assert lines(net) == ["a CUDA graph, replayed 4 times"]


def test_results_are_the_callers(net):
    results = [net(*inputs(seed)) for seed in range(5)]
    copies = [result.clone() for result in results]
    assert len({result.data_ptr() for result in results}) == 5
    results[2].fill_(7)
    for seed in range(5, 8):
        check(net, *inputs(seed))
    assert all(torch.equal(a, b) for k, (a, b) in enumerate(zip(results, copies)) if k != 2)


@pytest.mark.parametrize("way", CHANGES)
def test_a_change_of_the_model_is_followed(net, way, cuda_graphs):  # noqa: F811
    _, t, text = inputs(0)
    for seed in range(4):
        check(net, inputs(seed)[0], t, text)
    before = net(*inputs(9))
    CHANGES[way](net)
    for seed in range(4):
        check(net, inputs(seed)[0], t, text)
    same = torch.allclose(check(net, *inputs(9)), before, rtol=5e-3, atol=5e-3)
    assert same == (way in SAME)
    if way == "restored":
        assert lines(net) == []
        return
    assert any(replayed(net))
    stays = ("nothing", "a weight in place", "data in place", "a buffer in place", "load_state_dict")
    assert len(cuda_graphs) == (1 if way in stays or "of what is kept" in way else 2)


def test_adapter_scales_are_followed(net):
    _, t, text = inputs(0)
    add_adapter(net)
    for _ in range(3):
        for seed in range(3):
            before = check(net, inputs(seed)[0], t, text)
        set_scale(net)
        assert not torch.allclose(check(net, inputs(2)[0], t, text), before, rtol=1e-2, atol=1e-2)


def test_another_dtype_is_another_graph(net, cuda_graphs):  # noqa: F811
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        net.to(dtype)
        for seed in range(3):
            given = [each.to(dtype) for each in inputs(seed)]
            found, right = net(*given), net._call_impl(*given)
            assert found.dtype is dtype
            torch.testing.assert_close(found, right, rtol=3e-2, atol=3e-2)
    assert len(cuda_graphs) >= 2


def test_sizes_and_batches_change(net):
    for _ in range(3):
        for size, batch in ((8, 1), (12, 1), (8, 2), (10, 3)):
            check(net, *inputs(size, size, batch))
    assert all(any(each.graph.replays.explain()) for each in reports_of([*net.parameters()]))
    assert sum(replayed(net)) == 4  # one for the first size, three of the graph for any


def test_graphs_are_bounded_and_give_their_memory_back(net, cuda_graphs):  # noqa: F811
    for size in (8, *range(18, 18 + 2 * (replay.MAX_GRAPHS + 2), 2)):
        for seed in range(3):
            check(net, *inputs(seed, size))
    alive = [weakref.ref(graph) for graph in cuda_graphs]
    cuda_graphs.clear()
    gc.collect()
    assert len(alive) == replay.MAX_GRAPHS + 3
    assert sum(reference() is not None for reference in alive) == replay.MAX_GRAPHS + 1
    fastdiff.restore(net)
    gc.collect()
    assert not any(reference() is not None for reference in alive)


def test_a_graph_whose_weights_are_gone_goes(net, cuda_graphs):  # noqa: F811
    for seed in range(3):
        check(net, *inputs(seed))
    (first,) = map(weakref.ref, cuda_graphs)
    cuda_graphs.pop()
    net.conv.weight = nn.Parameter(2 * net.conv.weight)
    check(net, *inputs(0))
    gc.collect()
    assert first() is None


def test_a_model_goes_with_its_graphs():
    with torch.no_grad():
        net = fastdiff.optimize(Net().eval())
        for seed in range(3):
            net(*inputs(seed))
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


def test_a_prompt_is_kept_outside_of_the_graph(net, cuda_graphs):  # noqa: F811
    (_, t, text), other = inputs(0), inputs(5)[2]
    for seed in range(4):
        check(net, inputs(seed)[0], t, text)
    for seed in range(4):
        check(net, inputs(seed)[0], t, other)
    text.copy_(other.flip(1))  # the same tensor with other values
    check(net, inputs(1)[0], t, text)
    net.key.weight.mul_(1.7)  # what is kept follows
    check(net, inputs(1)[0], t, text)
    check(net, inputs(2)[0], t, text.clone())
    assert len(cuda_graphs) == 1


def test_the_same_prompt_is_not_compared(net, monkeypatch):
    _, t, text = inputs(0)
    for seed in range(3):
        net(inputs(seed)[0], t, text)
    right = net._call_impl(inputs(4)[0], t, text)
    monkeypatch.setattr(torch, "equal", lambda *arguments: pytest.fail("values were compared"))
    found = net(inputs(4)[0], t, text)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_prompts_that_differ_in_every_call_go_into_the_graph(net, cuda_graphs):  # noqa: F811
    for seed in range(9):
        check(net, *inputs(seed))
    assert len(cuda_graphs) == 2  # with the keys outside at first
    assert cuda_graphs[-1].replays >= 3


class Timed(Net):
    """With a time that is a number."""

    def forward(self, x, t, text):
        return super().forward(x, torch.tensor([t * 0.5], dtype=torch.float32, device=x.device).sin(), text)


@pytest.mark.parametrize("numbers", [range(1, 12), [0.5 * k for k in range(1, 12)]], ids=["int", "float"])
def test_numbers_are_computed_with_outside_of_the_graph(numbers, cuda_graphs):  # noqa: F811
    net = fastdiff.optimize(Timed().eval())
    x, _, text = inputs(0)
    with torch.no_grad():
        for number in numbers:
            check(net, x, number, text)
    assert len(cuda_graphs) == 1
    assert cuda_graphs[0].replays >= 6


class Draws(Net):
    def forward(self, x, t, text):
        return super().forward(x, t, text) + 0 * torch.randn_like(x)


class Reads(Net):
    def forward(self, x, t, text):
        y = super().forward(x, t, text)
        return y if float(y.mean()) < 1e9 else -y


class Selects(Net):
    def forward(self, x, t, text):
        y = super().forward(x, t, text)
        return y * (1 + 0 * torch.nonzero(y).sum())


class GivesItsInput(Net):
    def forward(self, x, t, text):
        return super().forward(x, t, text), x[:, :1]


WHY = {
    Draws: "draws random numbers",
    Selects: None,  # not even in one graph of the compiler
    GivesItsInput: "a result is a view of an input or a weight",
    Reads: None,
}


@pytest.mark.parametrize("kind", WHY, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore:fastdiff")
def test_what_cannot_be_captured_is_launched_and_why_is_said(kind):
    net = fastdiff.optimize(kind().eval())
    with torch.no_grad():
        for seed in range(4):
            check(net, *inputs(seed))
    if WHY[kind] is not None:
        assert [WHY[kind] in line for line in lines(net)] == [True], lines(net)
        assert lines(net)[0].startswith("launches: ")


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError, ValueError])
def test_a_failed_capture_falls_back_and_says_so(net, cuda_graphs, error):  # noqa: F811
    net(*inputs(0))
    generator = torch.get_rng_state()
    with failing(error("of no memory\nmore")), pytest.warns(graphs.GraphWarning, match="of no memory"):
        check(net, *inputs(1))
    for seed in range(3):
        check(net, *inputs(seed))
    assert lines(net) == ["launches: the model could not be captured: of no memory"]
    assert cuda_graphs == []
    assert not graphs.within()
    assert torch.equal(torch.get_rng_state(), generator)
    recordings = reports_of([*net.parameters()])[0].graph.replays._recordings
    assert all(recording.held is None and recording.graph is None for recording in recordings.values())
    fastdiff.refresh(net)  # then it is tried again
    for seed in range(3):
        check(net, *inputs(seed))
    assert replayed(net) == [True]


def test_no_memory_for_the_inputs_of_a_graph(net, monkeypatch, cuda_graphs):  # noqa: F811
    def own(x):
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(replay.memory, "own", own)
    for seed in range(3):
        check(net, *inputs(seed))
    assert lines(net) == ["launches: there was no memory for a graph's inputs"]
    assert cuda_graphs == []


def test_an_interrupted_capture_is_raised_and_tried_again(net, cuda_graphs):  # noqa: F811
    net(*inputs(0))
    with failing(KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        net(*inputs(1))
    assert not graphs.within()
    for seed in range(3):
        check(net, *inputs(seed))
    assert len(cuda_graphs) == 1


def test_the_environment_variable_turns_graphs_off(net, monkeypatch, cuda_graphs):  # noqa: F811
    monkeypatch.setenv("FASTDIFF_GRAPH", "0")
    for seed in range(3):
        check(net, *inputs(seed))
    assert cuda_graphs == []
    assert lines(net) == ["launches: FASTDIFF_GRAPH=0"]
    monkeypatch.delenv("FASTDIFF_GRAPH")
    for seed in range(3):
        check(net, *inputs(seed))
    assert len(cuda_graphs) == 1


@pytest.mark.parametrize("inference", [False, True])
def test_inference_mode(inference):
    net = fastdiff.optimize(Net().eval())
    for mode in (inference, not inference, inference):
        with torch.inference_mode(mode), torch.no_grad():
            for seed in range(3):
                check(net, *inputs(seed))


def test_inputs_with_other_strides(net):
    x, t, text = inputs(0, batch=2)
    for given in (x, x.transpose(2, 3), x.to(memory_format=torch.channels_last), x[:1].expand(2, -1, -1, -1)):
        for _ in range(3):
            found, right = net(given, t, text), net._call_impl(given, t, text)
            assert found.stride() == right.stride()
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_two_threads(net):
    right = [net._call_impl(*inputs(seed)) for seed in range(4)]
    wrong = []

    def work(seed):
        with torch.no_grad():
            given = inputs(seed)
            for _ in range(25):
                if not torch.allclose(net(*given), right[seed], rtol=1e-4, atol=1e-4):
                    wrong.append(seed)

    net(*inputs(0))
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_verify_holds_the_replay_to_the_original(net, monkeypatch):
    _, t, text = inputs(0)
    for seed in range(3):
        net(inputs(seed)[0], t, text)
    found = fastdiff.verify(net, net, (inputs(4)[0], t, text))
    assert found.ok, str(found)
    replay_ = StandIn.replay

    def wrong(self):
        replay_(self)
        for each in self.memory.results():
            each.add_(1)

    monkeypatch.setattr(StandIn, "replay", wrong)
    assert not fastdiff.verify(net, net, (inputs(4)[0], t, text)).ok
