"""Training a network: reproducible from a seed, interruptible at any moment, resumed where it stopped.

All randomness of batch k is drawn from generators seeded with (seed, k), so a run that was stopped and resumed goes
through the same numbers as one that was not, and so do processes that share the batches of a step.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastdiff.errors import TrainingError, expect
from fastdiff.files import locked, replacing
from fastdiff.train import checkpoint
from fastdiff.train.objective import Objective
from fastdiff.train.seeds import derived
from fastdiff.train.stopping import interrupts_wait
from fastdiff.train.workers import Workers, joined

LOG_FIELDS = ("step", "loss", "validation_loss", "seconds")
_STATE = ("recipe", "data", "model", "ema", "optimizer", "step", "seconds", "losses", "log")

AnyObjective = TypeVar("AnyObjective", bound=Objective)


class Training(Generic[AnyObjective]):
    """The state of one run: network, its exponential moving averages, optimiser and log, kept in `folder`.

    ema: the average of `recipe.ema_decay`, whose `module` is the result. averages: all of them, by their decay. step:
    how many were done; saved: how many of them checkpoint.pt holds.
    losses: of each step. log: rows of LOG_FIELDS, one every `recipe.validate_every` steps. checkpoint.pt holds the
    state, log.csv the log. Raises ValueError if the checkpoint in the folder belongs to another recipe or other data,
    WeightsError if it is damaged.
    """

    def __init__(self, objective: AnyObjective, folder: Path) -> None:
        self.objective, self.recipe, self.device = objective, objective.recipe, objective.device
        self.folder = folder
        self.checkpoint_path, self.log_path = folder / "checkpoint.pt", folder / "log.csv"
        recipe = self.recipe
        with self._own_randomness():
            torch.manual_seed(recipe.seed)
            network = objective.make_network()
        self.model = network.to(device=self.device, memory_format=objective.memory_format)  # type: ignore[call-overload]
        self.averages = {
            decay: AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)).eval() for decay in recipe.decays
        }
        self.ema = self.averages[recipe.ema_decay]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        expect(bool(trained), "the network has no parameter that requires a gradient")
        self.optimizer = torch.optim.AdamW(
            trained, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.step, self.saved, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []
        self.log: list[tuple] = []
        self._known: tuple[int, ...] | None = None  # of checkpoint.pt as it was last read or written
        self._restore()

    def run(
        self,
        *,
        on_step: Callable[[Training, float], None] | None = None,
        on_validation: Callable[[Training], None] | None = None,
    ) -> None:
        """Train to the recipe's last step. On Ctrl-C or SIGTERM the step in hand is finished and the state saved before
        KeyboardInterrupt is raised; on a second one at once, the last checkpoint stands.

        on_step(training, loss) follows every step, on_validation(training) every `recipe.validate_every`-th and the
        last; both in the first process only. Under torchrun the processes share the batches of each step.

        Raises ValueError if another process trains in the folder, and TrainingError, which names the step, if the loss,
        its gradient or the weights are no longer finite: the last checkpoint stands then.
        """
        with joined(self.device, self.recipe) as workers:
            alone = locked(self.folder) if workers.first else nullcontext()
            with alone, interrupts_wait() as interrupted, self._own_randomness():
                self._restore()  # another process may have gone on with the run before the folder was locked
                steps = workers.total([self.step])[0]
                expect(steps == workers.count * self.step, f"the processes see different runs in {self.folder}")
                self._run(workers, interrupted, on_step, on_validation)
                workers.total([0])  # the files are there when any process goes on

    def save(self) -> None:
        """Write checkpoint.pt and log.csv, each whole or not at all. Raises TrainingError, and writes nothing, if a
        weight is not finite."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise self._failure("a weight is not finite", self.step)
        state = {
            "recipe": checkpoint.settings(self.objective),
            "data": self.objective.fingerprint,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "more_emas": [self.averages[decay].state_dict() for decay in self.recipe.more_ema_decays],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "log": self.log,
        }
        checkpoint.write(self.checkpoint_path, state)
        self.saved, self._known = self.step, self._stamp()
        with replacing(self.log_path) as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(LOG_FIELDS)
            writer.writerows(self.log)

    def validation_loss(self) -> float:
        """Mean loss of the averaged network on what is not trained on, the same noise and times at every call."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        with torch.inference_mode():
            return float(self.objective.validation_loss(self.ema.module, generator))

    def learning_rate(self) -> float:
        """Of the next step: linear warm-up, then a cosine to zero at the last step."""
        recipe = self.recipe
        progress = (self.step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        rising = (self.step + 1) / max(1, recipe.warmup)
        return recipe.learning_rate * min(rising, 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))))

    def _run(
        self,
        workers: Workers,
        interrupted: Callable[[], bool],
        on_step: Callable[[Training, float], None] | None,
        on_validation: Callable[[Training], None] | None,
    ) -> None:
        started = time.monotonic() - self.seconds
        recipe, step = self.recipe, workers.step(self.objective, self.model)
        while self.step < recipe.steps:
            loss = self.take_step(workers, step)
            self.seconds = time.monotonic() - started
            if on_step is not None and workers.first:
                on_step(self, loss)
            done = self.step == recipe.steps
            if (self.step % recipe.validate_every == 0 or done) and workers.first:
                self._append_log()
                if on_validation is not None:
                    on_validation(self)
            stop = workers.total([interrupted()])[0] > 0
            if (self.step % recipe.checkpoint_every == 0 or done or stop) and workers.first:
                self.save()
            if stop:
                raise KeyboardInterrupt

    def take_step(self, workers: Workers, step: nn.Module) -> float:
        """One step, and its loss. step: `workers.step` of objective and model. Nothing is logged or saved; raises
        TrainingError, and changes no weight, if loss or gradient are not finite."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        own, total = workers.share(recipe), 0.0
        for part in own:
            number = self.step * recipe.accumulate + part
            generator = torch.Generator().manual_seed(derived(recipe.seed, number))
            torch.manual_seed(derived(recipe.seed, number))
            self.objective.prepare(number)
            with workers.alone(step) if part != own[-1] else nullcontext(), self.objective.while_training():
                loss = step(generator) / len(own)
                self.scaler.scale(loss).backward()
            total += float(loss.detach())
        (total,) = workers.total([total / workers.count])
        self._expect_finite("the loss", total)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        if not self.scaler.is_enabled():  # which skips such a step and scales less
            self._expect_finite("the norm of the gradient", float(norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for average in self.averages.values():
            average.update_parameters(self.model)
        self.losses.append(total)
        self.step += 1
        return total

    def _expect_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise self._failure(f"{what} is {value}", self.step + 1)

    def _failure(self, what: str, step: int) -> TrainingError:
        kept = f"{self.checkpoint_path} holds step {self.saved:,}" if self.saved else "nothing was saved before"
        return TrainingError(
            f"{what} at step {step:,} of {self.recipe.name}; {kept}. A lower learning_rate or clip_norm, or the "
            "precision float32, may help, in an empty folder"
        )

    def _own_randomness(self) -> Any:
        """Inside the block torch's generators may be seeded: they are as before afterwards."""
        devices: Iterable[Any] = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def _stamp(self) -> tuple[int, ...] | None:
        """What changes when checkpoint.pt is written, or None without one."""
        if not self.checkpoint_path.exists():
            return None
        found = self.checkpoint_path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _restore(self) -> None:
        """Go on with checkpoint.pt, if it is not the one that is known."""
        stamp = self._stamp()
        if stamp in (None, self._known):
            return
        state = checkpoint.read(self.checkpoint_path, _STATE, self.device)
        checkpoint.expect_same(self.checkpoint_path, state, self.objective)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:  # of several lines
            raise ValueError(f"{self.checkpoint_path} holds the weights of another network: {error}") from error
        self.ema.load_state_dict(state["ema"])
        for decay, average in zip(self.recipe.more_ema_decays, state.get("more_emas", ())):
            self.averages[decay].load_state_dict(average)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step = self.saved = state["step"]
        self.seconds = state["seconds"]
        self.losses, self.log = state["losses"], state["log"]
        self._known = stamp

    def _append_log(self) -> None:
        recent = self.losses[-self.recipe.validate_every :]
        self.log.append((self.step, sum(recent) / len(recent), self.validation_loss(), self.seconds))
