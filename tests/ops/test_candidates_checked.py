"""What candidates are checked on, and how they are timed on a GPU."""

import torch

from fastdiff.ops import ada_layer_norm, attention
from fastdiff.runtime import agreement
from fastdiff.runtime.graph_timer import CALLS, GraphTimer


def test_numbers_for_a_check_have_the_strides_and_leave_the_generator():
    storage = torch.zeros(2, 5, 3, 8, dtype=torch.float16)
    q, k, v = (
        storage.transpose(1, 2).unbind(1)[0][None],
        storage[:1].transpose(1, 2)[:, :1],
        storage.new_zeros(1, 1, 5, 8),
    )
    mask = torch.ones(1, 5, dtype=torch.bool).expand(5, 5)
    a = attention.Arguments(q.transpose(0, 1)[:1], k, v, mask)
    before = torch.get_rng_state()
    made = agreement.random_like(a)
    assert torch.equal(before, torch.get_rng_state())
    for given, other in zip(a[:3], made[:3]):
        assert (given.shape, given.stride(), given.dtype) == (other.shape, other.stride(), other.dtype)
        assert given.data_ptr() % 16 == other.data_ptr() % 16
        assert other.float().std() > 0.1
    assert made.mask is mask
    assert all(torch.equal(x, y) for x, y in zip(made[:3], agreement.random_like(a)[:3]))


def test_a_row_that_is_expanded_stays_expanded():
    x, row = torch.zeros(2, 3, 8), torch.zeros(2, 1, 1).expand(2, 1, 8)
    made = agreement.random_like(ada_layer_norm.Arguments(x, row, row))
    assert made.scale.stride() == row.stride()
    assert made.scale[0].unique().numel() == 1


def test_the_graph_timer_takes_the_median_of_replays():
    ran, watched = [], []

    class Graph:
        def __init__(self, device):
            pass

        def capture(self, body):
            body()

        def replay(self):
            watched.append("replay")

    times = iter([5.0, 1.0, 9.0, 2.0, 3.0])

    def watch(queue, device):
        queue()
        return next(times)

    timer = GraphTimer(Graph, watch)
    assert timer(lambda: ran.append(1), torch.device("cpu")) == 3.0 / CALLS
    assert len(ran) == CALLS
    assert len(watched) == 6  # one warms up
