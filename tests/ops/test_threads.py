"""Operators let other threads of Python run while their kernels work."""

import threading
import time

import pytest
import torch

from fastdiff import ops

ROWS, IMAGE = (1, 8192, 2048), (1, 64, 512, 512)
CALLS = {
    "ada_layer_norm": lambda x: ops.ada_layer_norm(x, x[:, :1], x[:, :1]),
    "residual_ada_layer_norm": lambda x: ops.residual_ada_layer_norm(x, x),
    "group_norm_silu": lambda x: ops.group_norm_silu(x, 1),
    "attention": lambda x: ops.attention(x, x, x),
}
SHAPES = {"ada_layer_norm": ROWS, "residual_ada_layer_norm": ROWS, "group_norm_silu": IMAGE}


@pytest.mark.parametrize("name", CALLS)
def test_the_lock_is_released(name):
    """Another thread notes the time while calls run; it would note none during a call that holds the lock."""
    x = torch.ones(SHAPES.get(name, (1, 1, 2048, 64)))
    noted: list[float] = []
    done = threading.Event()

    def note():
        while not done.is_set():
            noted.append(time.perf_counter())
            time.sleep(1e-4)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watcher = threading.Thread(target=note)
    try:
        CALLS[name](x)
        watcher.start()
        calls = []
        for _ in range(10):
            started = time.perf_counter()
            CALLS[name](x)
            calls.append((started, time.perf_counter()))
    finally:
        done.set()
        watcher.join()
        torch.set_num_threads(threads)
    # Well inside of each call, where Python's own part of it is over.
    inside = [sum(a + (b - a) / 4 < t < b - (b - a) / 4 for t in noted) for a, b in calls]
    assert max(inside) > 0, inside
