"""Training a network: reproducible from a seed, interruptible at any moment, resumed where it stopped.

All randomness of step k is drawn from a generator seeded with (seed, k), so a run that was stopped and resumed goes
through the same numbers as one that was not.
"""

from __future__ import annotations

import csv
import errno
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastdiff.errors import WeightsError, expect
from fastdiff.files import locked, replacing
from fastdiff.train.objective import Objective

LOG_FIELDS = ("step", "loss", "validation_loss", "seconds")
CHECKPOINT_EVERY = 100
VALIDATE_EVERY = 500


AnyObjective = TypeVar("AnyObjective", bound=Objective)


class Training(Generic[AnyObjective]):
    """The state of one run: network, its exponential moving average, optimiser and log, kept in `folder`.

    checkpoint.pt holds the state, log.csv a row every `VALIDATE_EVERY` steps. Raises ValueError if the checkpoint in
    the folder belongs to another recipe or other data, WeightsError if it is damaged.
    """

    def __init__(self, objective: AnyObjective, folder: Path) -> None:
        self.objective, self.recipe, self.device = objective, objective.recipe, objective.device
        self.folder = folder
        self.checkpoint_path, self.log_path = folder / "checkpoint.pt", folder / "log.csv"
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        self.model = objective.make_network().to(device=self.device, memory_format=objective.memory_format)  # type: ignore[call-overload]
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.log: list[tuple] = []
        if self.checkpoint_path.exists():
            self._restore()

    def run(self, *, on_step: Callable[[Training, float], None], on_validation: Callable[[Training], None]) -> None:
        """Train to the recipe's last step. On Ctrl-C the step in hand is finished and the state saved before
        KeyboardInterrupt is raised; on a second Ctrl-C at once, the last checkpoint stands.

        on_step(training, loss) follows every step, on_validation(training) every `VALIDATE_EVERY`-th and the last.
        Raises ValueError if another process trains in the folder.
        """
        started = time.monotonic() - self.seconds
        with locked(self.folder), _interrupts_wait() as interrupted:
            while self.step < self.recipe.steps:
                loss = self._train_step()
                self.losses.append(loss)
                self.step += 1
                self.seconds = time.monotonic() - started
                on_step(self, loss)
                done = self.step == self.recipe.steps
                if self.step % VALIDATE_EVERY == 0 or done:
                    self._append_log()
                    on_validation(self)
                stop = interrupted()
                if self.step % CHECKPOINT_EVERY == 0 or done or stop:
                    self.save()
                if stop:
                    raise KeyboardInterrupt

    def save(self) -> None:
        """Write checkpoint.pt and log.csv, each whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "data": self.objective.fingerprint,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "log": self.log,
        }
        with replacing(self.checkpoint_path) as path:
            try:
                torch.save(state, path)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(errno.ENOSPC, str(error)) from error
        with replacing(self.log_path) as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(LOG_FIELDS)
            writer.writerows(self.log)

    def validation_loss(self) -> float:
        """Mean loss of the averaged network on what is not trained on, the same noise and times at every call."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        with torch.inference_mode():
            return float(self.objective.validation_loss(self.ema.module, generator))

    def _restore(self) -> None:
        state = self._read()
        for what, found, wanted in (
            ("recipe", _without_steps(state["recipe"]), _without_steps(asdict(self.recipe))),
            ("data", state["data"], self.objective.fingerprint),
        ):
            expect(
                found == wanted,
                f"{self.checkpoint_path} was made with another {what}; give an empty folder, or {found!r}",
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses, self.log = state["losses"], state["log"]

    def _read(self) -> dict[str, Any]:
        """What `save` wrote. Raises WeightsError that names the file if it is something else, or only a part."""
        path = self.checkpoint_path
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # damaged bytes make torch.load raise nearly anything
            raise WeightsError(
                f"{path} is damaged or no checkpoint ({type(error).__name__}); remove it to begin again"
            ) from error
        missing = {"recipe", "data", "model", "ema", "optimizer", "step", "seconds", "losses", "log"}
        missing -= state.keys() if isinstance(state, dict) else set()
        if missing:
            raise WeightsError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}")
        return state

    def _train_step(self) -> float:
        generator = torch.Generator().manual_seed((self.recipe.seed << 32) + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with self.objective.while_training():
            loss = self.objective.loss(self.model, generator)
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.model)
        return float(loss.detach())

    def _learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero at the last step."""
        recipe = self.recipe
        progress = (self.step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return recipe.learning_rate * min(
            (self.step + 1) / recipe.warmup, 0.5 * (1 + math.cos(math.pi * max(0.0, progress)))
        )

    def _append_log(self) -> None:
        recent = self.losses[-VALIDATE_EVERY:]
        self.log.append((self.step, sum(recent) / len(recent), self.validation_loss(), self.seconds))


@contextmanager
def _interrupts_wait() -> Iterator[Callable[[], bool]]:
    """Inside the block the first Ctrl-C only sets what the yielded function returns; the second one raises."""
    asked = False

    def on_interrupt(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _without_steps(recipe: dict) -> dict:
    """A run may be resumed with more or fewer steps; the rest must be the same."""
    return {key: value for key, value in recipe.items() if key != "steps"}
