"""What graphs keep between calls, constants and results of the prompt alone, is never another's: not the caller's, not
another thread's, and not random."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import fx, nn

import fastdiff
from fastdiff.compiler.passes.invariants import Kept
from fastdiff.compiler.report import reports_of


class Prompted(nn.Module):
    """An image and a prompt; `returned` picks what else comes out."""

    def __init__(self, returned) -> None:
        super().__init__()
        self.key, self.image = nn.Linear(64, 64), nn.Conv2d(64, 64, 3, padding=1)
        self.returned = returned

    def forward(self, x, text):
        key = self.key(text)
        y = self.image(x) + key.mean(1)[:, :, None, None]
        return y, self.returned(x, text, key)


RETURNED = {
    "kept": lambda x, text, key: key,
    "view of kept": lambda x, text, key: key[:, :3],
    "permuted": lambda x, text, key: key.transpose(1, 2),
    "unusual strides": lambda x, text, key: key[:, ::2, ::3],
    "expanded": lambda x, text, key: key[:, :1].expand(-1, 5, -1),
    "several": lambda x, text, key: (key, {"chunks": key.chunk(2, -1)}),
    "split by an unknown function": lambda x, text, key: torch.tensor_split(key, 2, -1),
    "constant": lambda x, text, key: torch.arange(6.0).reshape(2, 3),
    "view of constant": lambda x, text, key: torch.ones(2, 3).t(),
    "constant twice": lambda x, text, key: [torch.linspace(0, 1, 5)] * 2,
    "frequencies": lambda x, text, key: torch.exp(-torch.arange(8, dtype=torch.float32) / 8)[None],
    "cast": lambda x, text, key: key.to(key.dtype),
    "contiguous": lambda x, text, key: key.contiguous(),
}


def tensors(x):
    return [t for t in torch.utils._pytree.tree_leaves(x) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("returned", RETURNED)
@pytest.mark.parametrize("sizes", [(8,), (8, 12)])
def test_results_may_be_changed_in_place(returned, sizes):
    torch.manual_seed(0)
    model = Prompted(RETURNED[returned]).eval()
    fast, text = fastdiff.optimize(model), torch.randn(1, 6, 64)
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(1, 64, size, size)
            for _ in range(4):
                found, right = fast(x, text), model._call_impl(x, text)
                for ours, theirs in zip(tensors(found), tensors(right), strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
                for ours in {id(t): t for t in tensors(found)}.values():
                    if torch._debug_has_internal_overlap(ours) == 0:  # an expanded one lies on itself
                        ours.mul_(3).add_(1)
    assert any(
        notes.name == "invariants" and notes.matches for r in reports_of([*model.parameters()]) for notes in r.passes
    )


def test_what_is_kept_is_no_view_of_an_input():
    """The caller writes the next prompt into the tensor that held the first."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.key = nn.Linear(64, 64)

        def forward(self, x, text):
            return (
                x
                + self.key(text).sum()
                + (text[:, :2].sum(-1) * x.mean()).sum()
                + text[:, :2].transpose(1, 2).cumsum(1).max()
            )

    torch.manual_seed(0)
    fast = fastdiff.optimize(Net().eval())
    buffer, x = torch.randn(1, 6, 64), torch.randn(1, 4, 8, 8)
    first, second = buffer.clone(), torch.randn(1, 6, 64)
    with torch.no_grad():
        for text in (buffer, buffer, buffer):
            fast(x, text)
        buffer.copy_(second)
        for text in (first, buffer, first):
            torch.testing.assert_close(fast(x, text), fast._call_impl(x, text))


class Waits(nn.Module):
    """A product that waits, where it is told to, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on, self.wait = threading.Event(), threading.Event(), False

    def forward(self, x, weight):
        if self.wait:
            self.wait = False
            self.inside.set()
            assert self.go_on.wait(30)
        return (x @ weight,)


@pytest.mark.parametrize("meanwhile", [1, 2, 3])
def test_a_thread_does_not_get_what_another_kept(meanwhile):
    """A thread computes for its prompt; before it stores that, another comes with another prompt."""
    kept, weight = Kept(fx.symbolic_trace(nn.Identity()), 1), torch.randn(3, 3)
    kept.module = Waits()
    first, second = torch.randn(2, 2, 3)
    kept(first, weight)
    kept.module.wait = True
    found = []
    thread = threading.Thread(target=lambda: found.append(kept(first, weight)[0]))
    thread.start()
    assert kept.module.inside.wait(30)
    for _ in range(meanwhile):
        assert torch.equal(kept(second, weight)[0], second @ weight)
    kept.module.go_on.set()
    thread.join()
    assert torch.equal(found[0], first @ weight)
    for x in (second, first, first, second, second, second, first):
        assert torch.equal(kept(x, weight)[0], x @ weight)


def test_threads_with_two_prompts():
    """Many calls at once, with a pause wherever values are compared."""
    torch.manual_seed(0)
    fast = fastdiff.optimize(Prompted(lambda x, text, key: key).eval())
    x, prompts = torch.randn(1, 64, 8, 8), torch.randn(3, 1, 6, 64)
    with torch.no_grad():
        fast(x, prompts[0])
        right = [fast._call_impl(x, text)[1] for text in prompts]
    wrong: list[int] = []

    def work(number):
        with torch.no_grad():
            for call in range(40):
                which = number if call % 8 < 5 else call % 3
                if not torch.allclose(fast(x, prompts[which])[1], right[which], atol=1e-5):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
