"""The loop itself: batches of a step, processes, averages, precisions, and runs that cannot go on."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import RUN, Squares, average, train

from fastdiff.errors import TrainingError
from fastdiff.train.loop import Training


def test_batches_of_a_step_are_averaged(tmp_path):
    """One step of three batches of 4 has the gradient of their mean loss."""
    run = replace(RUN, accumulate=3, steps=1, warmup=0, clip_norm=1e9)
    training = Training(Squares(run), tmp_path)
    network = Squares(run).make_network()
    network.load_state_dict(training.model.state_dict())
    losses = []
    for number in range(3):
        objective = Squares(run)
        objective.prepare(number)
        torch.manual_seed(number)  # of the dropout
        losses.append(objective.loss(network, torch.Generator().manual_seed(number)))
    mean = torch.stack(losses).mean()
    mean.backward()
    grads = []
    training.optimizer.register_step_pre_hook(
        lambda *_: grads.extend(p.grad.clone() for p in training.model.parameters())
    )
    training.run()
    assert training.losses == [pytest.approx(mean.item(), rel=1e-6)]
    for ours, expected in zip(grads, network.parameters()):
        torch.testing.assert_close(ours, expected.grad, rtol=1e-5, atol=1e-7)


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from small_runs import RUN, Squares
from fastdiff.train.loop import Training
training = Training(Squares(replace(RUN, accumulate=2, steps=int(sys.argv[3]))), Path(sys.argv[2]))
grads = []
parameters = list(training.model.parameters())
training.optimizer.register_step_pre_hook(lambda *_: grads.append([p.grad.clone() for p in parameters]))
training.run()
from fastdiff.train.workers import started
torch.save({"grads": grads, "losses": training.losses, "weights": training.ema.module.state_dict()},
           Path(sys.argv[2]) / f"process-{started()[0]}.pt")
"""


def torchrun(folder, steps, processes=2):
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    result = subprocess.run(
        [*command, folder / "worker.py", os.path.dirname(__file__), folder, str(steps)],
        capture_output=True, text=True, check=False, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"process-{rank}.pt") for rank in range(processes)]


@pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv there")
def test_two_processes_give_the_gradients_of_one_and_can_be_resumed_by_one(tmp_path):
    run = replace(RUN, accumulate=2, steps=4)
    training, grads = Training(Squares(run), tmp_path), []
    training.optimizer.register_step_pre_hook(
        lambda *_: grads.append([p.grad.clone() for p in training.model.parameters()])
    )
    training.run()
    first, second = torchrun(tmp_path / "two", 4)
    for found in (first, second):
        for ours, expected in zip(found["grads"], grads):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
        assert found["losses"] == pytest.approx(training.losses, rel=1e-5)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    # A run that two processes began goes on in one.
    resumed = Training(Squares(replace(run, steps=6)), tmp_path / "two")
    assert resumed.step == 4
    resumed.run()
    assert resumed.step == 6


@pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv there")
def test_processes_that_cannot_share_a_step_are_refused(tmp_path):
    with pytest.raises(AssertionError, match="accumulate must be a multiple of the 3 processes, got 2"):
        torchrun(tmp_path, 1, processes=3)


def test_several_averages_have_their_decays_and_are_resumed(tmp_path):
    run = replace(RUN, ema_decay=0.5, more_ema_decays=(0.0, 0.9), steps=6)
    history = []
    whole = train(run, tmp_path / "whole", lambda training, _: history.append(average(training.model)))
    expected = history[0]
    for weights in history[1:]:
        expected = 0.9 * expected + 0.1 * weights
    assert torch.equal(average(whole.averages[0.0].module), history[-1])
    torch.testing.assert_close(average(whole.averages[0.9].module), expected)
    assert whole.ema is whole.averages[0.5]
    train(replace(run, steps=3), tmp_path / "parts")
    # The rate falls to the last step of the run, which is another one here.
    parts = Training(Squares(replace(run, steps=3)), tmp_path / "parts")
    for decay, each in parts.averages.items():
        state = torch.load(tmp_path / "parts" / "checkpoint.pt")
        saved = {0.5: state["ema"], 0.0: state["more_emas"][0], 0.9: state["more_emas"][1]}[decay]
        for name, value in each.state_dict().items():
            assert torch.equal(value, saved[name])


def test_a_run_without_warm_up_begins_at_the_full_rate(tmp_path):
    training = Training(Squares(replace(RUN, warmup=0, learning_rate=0.25)), tmp_path)
    assert training.learning_rate() == 0.25
    training.run()
    assert training.step == RUN.steps


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precisions_learn_the_same_thing_and_keep_weights_in_float32(tmp_path, precision):
    run = replace(RUN, precision=precision, steps=150, batch=64, learning_rate=0.02)
    training = train(run, tmp_path)
    assert np.mean(training.losses[-5:]) < 0.3 * np.mean(training.losses[:5])
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert training.scaler.is_enabled() == (precision == "float16")
    if precision == "float16":
        resumed = Training(Squares(replace(run, steps=151)), tmp_path)
        assert resumed.scaler.state_dict() == training.scaler.state_dict()


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_what_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path, what):
    class Broken(Squares):
        def loss(self, network, generator):
            loss = super().loss(network, generator)
            if self.number == 7 and what == "loss":
                return loss * float("nan")
            if self.number == 7 and what == "gradient":
                return loss + (network[0].weight * 0).sum().sqrt()
            return loss

    training = Training(Broken(replace(RUN, steps=20, checkpoint_every=4)), tmp_path)
    if what == "weight":
        training.optimizer.register_step_post_hook(
            lambda *_: training.model[0].bias.data.fill_(float("inf")) if training.step == 7 else None
        )
    said = {"loss": "the loss is nan at step 8", "gradient": "the norm of the gradient is nan at step 8",
            "weight": "a weight is not finite at step 8"}[what]  # fmt: skip
    with pytest.raises(TrainingError, match=rf"{said} of squares; .*checkpoint\.pt holds step 4"):
        training.run()
    kept = Training(Squares(replace(RUN, steps=20)), tmp_path)
    assert kept.step == 4
    assert all(torch.isfinite(p).all() for p in kept.model.parameters())
    kept.run()
    assert kept.step == 20


def test_a_run_that_another_process_took_further_goes_on_from_there(tmp_path):
    """Both read the folder before either had it to itself."""
    one, other = (Training(Squares(replace(RUN, steps=6)), tmp_path) for _ in range(2))
    one.run()
    steps = []
    other.run(on_step=lambda *_: steps.append(1))
    assert other.step == 6
    assert steps == []
    assert torch.equal(average(other.ema.module), average(one.ema.module))


def test_a_checkpoint_of_before_a_setting_was_there_goes_on(tmp_path):
    training = train(replace(RUN, steps=2), tmp_path)
    state = torch.load(training.checkpoint_path)
    for later in ("accumulate", "more_ema_decays", "checkpoint_every", "validate_every"):
        del state["recipe"][later]
    del state["more_emas"], state["scaler"]
    torch.save(state, training.checkpoint_path)
    assert Training(Squares(RUN), tmp_path).step == 2


def test_another_seed_draws_other_numbers(tmp_path):
    """torch's generators on the CPU take 32 bits of a seed: in the upper ones the run's seed changed nothing."""
    drawn = []

    class Watched(Squares):
        def loss(self, network, generator):
            if network.training:  # else validated, by the same numbers each time
                drawn.append((float(torch.rand((), generator=generator)), float(torch.rand(()))))
            return super().loss(network, generator)

    for seed in (0, 1, 2, 2**31 - 1):
        (tmp_path / str(seed)).mkdir()
        Training(Watched(replace(RUN, seed=seed)), tmp_path / str(seed)).run()
    for numbers in zip(*drawn):
        assert len(set(numbers)) == len(numbers)


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process at once there")
def test_what_the_system_asks_to_end_is_saved_first(tmp_path):
    def ask(training, _):
        if training.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(RUN, tmp_path, ask)
    assert Training(Squares(RUN), tmp_path).step == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_torch_keeps_its_own_random_numbers(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(RUN, tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "float8"}, "unknown precision 'float8'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"ema_decay": 1.0}, r"must lie in \[0, 1\), got 1.0"),
        ({"more_ema_decays": (0.9, RUN.ema_decay)}, "must differ"),
    ],
)
def test_settings_that_cannot_be(change, said):
    with pytest.raises(ValueError, match=said):
        replace(RUN, **change)
