"""Hooks run, whenever they were registered, and no longer when they were removed."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.modules import module as of_all_modules

import fastdiff


@pytest.fixture
def model():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU())
    return nn.Sequential(inner, nn.Conv2d(64, 64, 3, padding=1)).eval()


def agrees(fast, x):
    """Whether the fast model gives what the original does; the hooks of both run."""
    with torch.no_grad():
        found, right = fast(x), fast._call_impl(x)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    return found


REGISTERED = {
    "forward": lambda m, act: m.register_forward_hook(lambda module, args, out: act(out)),
    "forward, prepended": lambda m, act: m.register_forward_hook(lambda module, args, out: act(out), prepend=True),
    "forward with names": lambda m, act: m.register_forward_hook(
        lambda module, args, kwargs, out: act(out), with_kwargs=True
    ),
    "before": lambda m, act: m.register_forward_pre_hook(lambda module, args: (act(args[0]),)),
    "before with names": lambda m, act: m.register_forward_pre_hook(
        lambda module, args, kwargs: ((act(args[0]),), kwargs), with_kwargs=True
    ),
}
PLACES = {"the model": lambda m: m, "a container": lambda m: m[0], "a layer": lambda m: m[0][0]}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", REGISTERED)
def test_a_hook_registered_after_the_first_call_runs(model, kind, place):
    fast, seen = fastdiff.optimize(model), []
    for size in (8, 8, 12):
        plain = agrees(fast, torch.randn(2, 64, size, size))
    x = torch.randn(2, 64, 8, 8)
    plain = agrees(fast, x)

    def act(tensor):
        seen.append(len(seen))
        return tensor * 2 + 1

    handle = REGISTERED[kind](PLACES[place](model), act)
    for _ in range(3):
        before = len(seen)
        with torch.no_grad():
            assert not torch.allclose(fast(x), plain)
        assert len(seen) == before + 1
    agrees(fast, x)
    agrees(fast, torch.randn(2, 64, 12, 12))
    handle.remove()
    before = len(seen)
    torch.testing.assert_close(agrees(fast, x), plain)
    assert len(seen) == before


def test_a_hook_there_from_the_start_may_be_removed(model):
    handle = model[0].register_forward_hook(lambda module, args, out: out * 0)
    fast, x = fastdiff.optimize(model), torch.randn(2, 64, 8, 8)
    zeros = agrees(fast, x)
    handle.remove()
    assert not torch.allclose(agrees(fast, x), zeros)


def test_one_hook_in_place_of_another(model):
    fast, x = fastdiff.optimize(model), torch.randn(2, 64, 8, 8)
    found = []
    for factor in (2.0, 3.0, 2.0, 5.0, 7.0, 9.0):
        handle = model[0].register_forward_hook(lambda module, args, out, factor=factor: out * factor)
        found.append(agrees(fast, x))
        handle.remove()
    assert torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], found[1])


def test_a_part_with_hooks_put_in_the_place_of_one_without(model):
    """Its hooks were registered before the first call."""
    fast, x = fastdiff.optimize(model), torch.randn(2, 64, 8, 8)
    other = copy.deepcopy(model[0])
    other[1].register_forward_hook(lambda module, args, out: out + 1)
    plain = agrees(fast, x)
    agrees(fast, x)
    before, model[0] = model[0], other
    assert not torch.allclose(agrees(fast, x), plain)
    model[0] = before
    torch.testing.assert_close(agrees(fast, x), plain)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules(model, kind):
    fast, x, seen = fastdiff.optimize(model), torch.randn(2, 64, 8, 8), []
    agrees(fast, x)
    handle = getattr(of_all_modules, f"register_module_{kind}")(lambda *arguments: seen.append(1))
    try:
        with torch.no_grad():
            fast(x)
    finally:
        handle.remove()
    assert len(seen) == 5
    agrees(fast, x)
    assert len(seen) == 5


def test_captures_are_kept_for_hooks_that_come_and_go(model):
    from fastdiff.compiler.report import reports_of

    fast, x = fastdiff.optimize(model), torch.randn(2, 64, 8, 8)
    agrees(fast, x)
    for _ in range(3):
        handle = model[1].register_forward_hook(lambda module, args, out: out + 1)
        agrees(fast, x)
        handle.remove()
        agrees(fast, x)
    assert len(reports_of([*model.parameters()])) == 4  # one without, and one for each that came


def test_hooks_put_into_the_dictionary_by_hand(model):
    fast, x = fastdiff.optimize(model), torch.randn(2, 64, 8, 8)
    plain = agrees(fast, x)
    model[0][0]._forward_hooks[10**9] = lambda module, args, out: out * 2
    doubled = agrees(fast, x)
    assert not torch.allclose(plain, doubled)
    model[0][0]._forward_hooks.clear()
    assert torch.equal(agrees(fast, x), plain)


def test_a_dictionary_of_hooks_replaced_by_an_empty_one(model):
    fast, x = fastdiff.optimize(model), torch.randn(2, 64, 8, 8)
    plain = agrees(fast, x)
    model[0][0].register_forward_hook(lambda module, args, out: out * 2)
    assert not torch.allclose(agrees(fast, x), plain)
    model[0][0]._forward_hooks = OrderedDict()
    assert torch.equal(agrees(fast, x), plain)


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize("outer", [False, True])
def test_another_forward_of_a_class_is_seen(model, monkeypatch, outer):
    model = Twice(model) if outer else nn.Sequential(model, Twice(nn.SiLU()))
    fast, x = fastdiff.optimize(model), torch.randn(2, 64, 8, 8)
    plain = agrees(fast, x)
    with monkeypatch.context() as patch:
        patch.setattr(Twice, "forward", lambda self, x: 3 * self.inner(x))
        assert not torch.allclose(agrees(fast, x), plain)
    assert torch.equal(agrees(fast, x), plain)


def test_a_part_in_torchscript(model):
    model[1] = torch.jit.trace(model[1], torch.randn(2, 64, 8, 8))
    fast = fastdiff.optimize(model)
    agrees(fast, torch.randn(2, 64, 8, 8))
    agrees(fast, torch.randn(2, 64, 12, 12))
