"""A worker process: `python -m fastdiff.distributed.worker`. JSON lines in, JSON lines out.

In: {"kind", "job", "out": store, "threads": n}, then units. Out: ready or refused, then done or failed for each unit.
It ends when its input does, in the middle of a unit too: a driver that was killed leaves no workers behind.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from fastdiff.distributed.pools import REFUSALS, Runner, failure


def make_runner(order: Mapping[str, Any]) -> Runner:
    """What makes the units of {"kind", "job", "out"}; kind: "sample" or "profile"."""
    from fastdiff.distributed.jobs import SampleJob
    from fastdiff.distributed.sampler import Sampler
    from fastdiff.distributed.storage import open_storage
    from fastdiff.distributed.sweeper import Sweeper

    if order["kind"] == "profile":
        return Sweeper(order["job"])
    return Sampler(SampleJob.from_dict(order["job"]), open_storage(order["out"]))


def serve(source: TextIO, answer: TextIO) -> None:
    """Answer what `source` asks, until it ends."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in source:
            lines.put(line)
        os._exit(0)  # the driver is gone or done with this worker

    def say(**message: Any) -> None:
        answer.write(json.dumps(message) + "\n")
        answer.flush()

    threading.Thread(target=read, daemon=True).start()
    order = json.loads(lines.get())
    if order.get("threads"):
        import torch

        torch.set_num_threads(order["threads"])
    try:
        runner = make_runner(order)
        say(ready=runner.hello())
    except REFUSALS as error:
        say(refused=failure(error)["text"])
        return
    while True:
        unit = json.loads(lines.get())
        try:
            done = runner.make(unit)
        except Exception as error:
            say(failed=failure(error))
        else:
            say(done=done)


def main() -> None:
    """Serve the driver that started this process. What a model prints goes to the standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends the workers
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(sys.stdin, answer)


if __name__ == "__main__":
    main()
