"""Training of any network on any data with any of the losses: `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdiff.files import writable_folder
from fastdiff.runtime.telling import show
from fastdiff.train.data import get_data
from fastdiff.train.loop import Training
from fastdiff.train.network import Loss, NetworkObjective
from fastdiff.train.process import Process
from fastdiff.train.results import Results
from fastdiff.train.run import Run
from fastdiff.train.workers import own_device


def fit(
    network: nn.Module,
    data: Any,
    folder: str | Path,
    *,
    loss: str | Loss = "denoising",
    schedule: Any = "cosine",
    prediction: Any = "v",
    uncond: Mapping[str, Any] | None = None,
    dropout: float = 0.1,
    mirror: bool = False,
    classes: Sequence[str] = (),
    device: torch.device | str = "cpu",
    fingerprint: str | None = None,
    on_step: Callable[[Training, float], None] | None = None,
    on_validation: Callable[[Training], None] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Training[NetworkObjective]:
    """Train a network; a run that is in the folder already goes on at the exact step.

    network: called as `network(x, t, **cond)`, with weights as they are to begin with; it is trained in place. data: a
    tensor of samples (N, ...), uint8 for pictures, a Dataset with a length, a `fastdiff.train.pictures.Pictures`, or an
    iterable of batches, such as a DataLoader; see `fastdiff.train.data`. loss, uncond, dropout, mirror: see
    `NetworkObjective`. schedule, prediction: as for `fastdiff.sample`. classes: their names, if "y" are their numbers.
    fingerprint: of the data, where it cannot be told from them. on_step, on_validation: see `Training.run`. progress: a
    line on the standard error whenever the run is validated. settings: of `fastdiff.train.run.Run`, such as steps,
    batch, learning_rate, precision; name is the folder's unless given.

    folder gets checkpoint.pt, log.csv, and what `fastdiff.train.results.Results` writes. Under torchrun all processes
    train one network.

    Returns the run; `training.ema.module` is the averaged network. Raises what `Training.run` and the loss raise.
    """
    if progress:
        show()
    run = Run(**{"name": Path(folder).resolve().name, **settings})
    process = Process.of(schedule, prediction)
    objective = NetworkObjective(
        run, network, get_data(data, seed=run.seed, fingerprint=fingerprint), process, loss=loss, uncond=uncond,
        dropout=dropout, mirror=mirror, device=own_device(device),
    )  # fmt: skip
    training = Training(objective, writable_folder(folder))
    with Results(training, classes) as results:

        def validated(training: Training) -> None:
            results.write()
            if on_validation is not None:
                on_validation(training)

        training.run(on_step=on_step, on_validation=validated)
    return training
