"""What a run leaves beside its checkpoint: the loss curve, pictures on the way, the averaged weights, TensorBoard's
events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff import pictures
from fastdiff.files import replacing
from fastdiff.models.checkpoints import own
from fastdiff.runtime.telling import log
from fastdiff.train.logs import Board
from fastdiff.train.loop import Training
from fastdiff.train.network import NetworkObjective


class Results:
    """Files of a run in its folder, for `Training.run(on_validation=...)`: `write` makes them anew.

    loss.png, samples-STEP.png where the data are pictures, the weights averaged with `ema_decay` as safetensors with
    config.json, which `fastdiff.models.load(folder)` and `fastdiff sample --model FOLDER` read for our U-Net and DiT,
    those of other averages as average-DECAY.safetensors, and TensorBoard's events where it is installed. classes: their
    names, in the order of their numbers.
    """

    def __init__(self, training: Training[NetworkObjective], classes: Sequence[str] = ()) -> None:
        self.training, self.classes = training, tuple(classes)
        self._board: Board | None = None

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self) -> None:
        """At a step that was validated."""
        training, folder = self.training, self.training.folder
        step, loss, validation, seconds = training.log[-1]
        left = (training.recipe.steps - step) * seconds / step
        log.info(
            f"step {step:,} of {training.recipe.steps:,}: loss {loss:.4f}, on {training.objective.validated_on} "
            f"{validation:.4f}, {seconds / step:.3f} s a step, {left / 60:.0f} minutes left"
        )
        plot_losses(training, folder / "loss.png")
        sheet = samples(training)
        if sheet is not None:
            pictures.save_png(folder / f"samples-{step:06d}.png", sheet, zoom=zoom(training))
        self._board = self._board or Board(folder, training.saved)
        values = {"loss": loss, "validation loss": validation, "learning rate": training.learning_rate()}
        self._board.add(step, values, sheet)
        self._weights()

    def _weights(self) -> None:
        training, objective = self.training, self.training.objective
        own.write(
            training.folder, training.ema.module, training.ema.module.state_dict(), name=training.recipe.name,
            shape=objective.shape, schedule=objective.process.schedule, prediction=objective.process.prediction.name,
            classes=self.classes, card=card(training),
        )  # fmt: skip
        for decay in training.recipe.more_ema_decays:
            state = training.averages[decay].module.state_dict()
            own.write_weights(training.folder / f"average-{decay:g}.safetensors", state)


def card(training: Training) -> dict[str, Any]:
    """How the run went, for config.json."""
    _, loss, validation, seconds = training.log[-1]
    return {
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "steps": training.step,
        "hours": round(seconds / 3600, 3),
        "loss": loss,
        "validation_loss": validation,
        "validated_on": training.objective.validated_on,
        "data_sha256": training.objective.fingerprint,
        "settings": asdict(training.recipe),
    }


def samples(training: Training) -> NDArray[np.uint8] | None:
    """What the averaged network makes, as one picture (H, W, 3), or None where its objective makes no pictures."""
    found = training.objective.pictures(training.ema.module)
    return None if found is None else pictures.grid(*found)


def zoom(training: Training[NetworkObjective]) -> int:
    """How large a pixel of small pictures is in a file."""
    return max(1, 128 // training.objective.shape[-1])


def plot_losses(training: Training, path: Path) -> None:
    """The loss curve as a picture: every step faintly, the means of the log, and the held-out loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    losses, table = np.asarray(training.losses), np.asarray(training.log)
    marker = "." if len(table) < 3 else ""
    axes.plot(np.arange(1, len(losses) + 1), losses, color="0.85", linewidth=0.5, label="each step")
    axes.plot(table[:, 0], table[:, 1], marker=marker, label=f"mean of the last {training.recipe.validate_every:,}")
    axes.plot(table[:, 0], table[:, 2], marker=marker, label=f"{training.objective.validated_on}, averaged network")
    positive = bool((losses > 0).all() and (table[:, 1:3] > 0).all())
    axes.set(xlabel="step", ylabel="loss", yscale="log" if positive else "linear")
    axes.set_title(f"{training.recipe.name}, {training.seconds / 3600:.2g} hours")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
