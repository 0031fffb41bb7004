"""The stand-in for a CUDA graph itself: what a capture forbids, and memory that is given up too early, are seen."""

import ctypes

import pytest
import torch
from graph_memory import Forbidden
from graph_stand_in import StandIn

CPU = torch.device("cpu")


def captured(body):
    graph = StandIn(CPU)
    with torch.no_grad():
        graph.capture(body)
    return graph


def test_a_replay_does_what_the_capture_only_records():
    x, out = torch.arange(4.0), torch.zeros(4)
    held = []

    def body():
        held.append((2 * x + 1).view(2, 2))
        out.add_(held[0].flatten())

    graph = captured(body)
    assert out.tolist() == [0.0] * 4
    assert torch.isnan(held[0]).all()
    for times in (1, 2):
        graph.replay()
        assert held[0].tolist() == [[1.0, 3.0], [5.0, 7.0]]
        assert out.tolist() == [times * y for y in (1.0, 3.0, 5.0, 7.0)]
    x.zero_()
    graph.replay()
    assert held[0].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_an_input_that_was_freed_is_named():
    x, out = torch.ones(3, 5), torch.zeros(3, 5)
    graph = captured(lambda: out.copy_(x.exp()))
    graph.replay()
    x = None
    why = r"was freed: input 0 of aten.exp.default at test_graph_stand_in.py:\d+, float32 \(3, 5\)"
    with pytest.raises(Forbidden, match=why):
        graph.replay()


def test_weights_that_were_moved_are_named():
    layer, x, out = torch.nn.Linear(300, 500), torch.ones(2, 300), torch.zeros(2, 500)
    graph = captured(lambda: out.copy_(layer(x)))
    held = torch.zeros(500, 300)  # elsewhere than the old ones
    layer.weight.data = held
    with pytest.raises(Forbidden, match=r"was freed: input . of aten.* float32 \(500, 300\)"):
        graph.replay()


def test_what_is_dropped_outside_is_an_error_and_what_is_dropped_inside_is_not():
    x, out = torch.ones(4), torch.zeros(4)
    factor = torch.full((4,), 3.0)
    graph = captured(lambda: out.copy_((x * factor).sin()))
    graph.replay()
    torch.testing.assert_close(out, torch.full((4,), 3.0).sin())
    factor = None
    with pytest.raises(Forbidden, match=r"input 1 of aten.mul"):
        graph.replay()


def test_memory_that_is_given_up_in_a_capture_holds_nothing_afterwards():
    """As by a kernel that is given the address of a tensor that nobody holds any more."""
    x, out = torch.ones(4), torch.zeros(4)

    def body():
        address = (2 * x).data_ptr()
        StandIn.current().note(lambda: ctypes.memmove(out.data_ptr(), address, out.nbytes), (), {})

    graph = captured(body)
    graph.replay()
    assert torch.isnan(out).all()


def test_results_nobody_holds_are_another_graphs_after_a_replay():
    held = []
    graph = captured(lambda: held.append(torch.ones(2) * 3))
    graph.replay()
    assert held[0].tolist() == [3.0, 3.0]
    memory = graph.memory._own[-1]
    held.clear()
    graph.replay()
    assert torch.isnan(memory.bytes.view(torch.float32)).all()


NOT_PERMITTED = {
    "a value": lambda x: float(x[0]),
    "a list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "a copy to the host": lambda x: x.cpu(),
    "a choice": lambda x: x[x > 0],
    "random numbers": torch.rand_like,
    "numbers of Python": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "another device": lambda x: x.to("meta"),
    "a wait": lambda x: torch.cuda.synchronize(),
    "an event": lambda x: torch.cuda.Event.synchronize(None),
    "memory of another pool": lambda x: x + torch.frombuffer(bytearray(12), dtype=torch.float32),
}


@pytest.mark.parametrize("what", NOT_PERMITTED)
def test_what_a_capture_forbids(what):
    x = torch.ones(3)
    with pytest.raises(Forbidden, match="not permitted when stream is capturing"):
        captured(lambda: NOT_PERMITTED[what](x))
    assert StandIn.active == 0
    assert x.tolist() == [1.0] * 3  # all is as before
