"""Weights on a GPU of which something is kept: what a use asks of them, and when a change through `.data` is seen."""

import pytest
import torch

from fastdiff.runtime import contents, graphs


@pytest.fixture
def weight(monkeypatch):
    """One that is taken to be in another device's memory."""
    monkeypatch.setattr(contents, "is_ordinary", lambda tensor: False)
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    yield weight
    contents.forget(weight)


class Event:
    """Of a comparison that is not ready until it is asked the second time."""

    def __init__(self):
        self.asked = 0

    def query(self):
        self.asked += 1
        return self.asked > 1


def test_a_use_compares_no_values(weight, monkeypatch):
    first = contents.of(weight)
    monkeypatch.setattr(contents._Sample, "differs", lambda *arguments: pytest.fail("values were compared"))
    assert contents.of(weight) is first
    weight.mul_(2)
    second = contents.of(weight)
    assert second is not first
    weight.data = weight.data.clone()
    assert contents.of(weight) is not second


@pytest.mark.parametrize("waits", [False, True])
def test_a_watch_sees_what_is_written_through_data(weight, waits):
    first, watch = contents.of(weight), contents.Watch()
    watch.ask([weight])
    watch.answered()
    assert contents.of(weight) is first
    weight.data[3] *= 2
    assert contents.of(weight) is first  # not seen yet
    watch.ask([weight])
    if waits:
        watch._asked = (*watch._asked[:2], Event())
        watch.answered()
        assert contents.of(weight) is first  # the answer is not there
        watch.ask([weight])  # nor is another question put
    watch.answered()
    assert contents.of(weight) is not first


def test_a_changed_weight_is_found_by_verify(weight):
    contents.of(weight)
    assert not contents.changed(weight)
    weight.data[:, 2] += 1
    assert contents.changed(weight)


def test_nothing_made_in_a_capture_is_known_after_it(weight, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "capturing", lambda: True)
        inside = contents.of(weight)
        inside.derived["form"] = "in the graph's memory"
    assert contents.of(weight) is not inside
    assert contents.of(weight).derived == {}
    known = contents.of(weight)
    with monkeypatch.context() as patch, contents.noted() as noted:
        patch.setattr(graphs, "capturing", lambda: True)
        assert contents.of(weight) is known
    assert [(each is weight, content is known) for each, content in noted] == [(True, True)]
