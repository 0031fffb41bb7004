"""A training step of emoji-unet-32: our operators with their gradients against PyTorch eager.

    python benchmarks/bench_train.py [--batch 32] [--precision float32] [--rounds 15] [--device cpu] [--json FILE]

A step is the loss, its gradient, clipping, AdamW and the averaging of weights, as `fastdiff.train` takes it. First the
gradients of one batch are compared with those in float64: what is further off than PyTorch's is not timed. Then all
take steps in turns. PyTorch runs twice, with its fused attention and with attention as products and a softmax, and the
faster one counts. The pictures are random; the weights are the bundled ones. --small is a quick check of this file."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastdiff
from fastdiff import arguments
from fastdiff.bench.suites import BAD_ARGUMENT
from fastdiff.bench.timing import interleave
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.train.data import get_data
from fastdiff.train.loop import Training
from fastdiff.train.losses import denoising_loss
from fastdiff.train.network import NetworkObjective
from fastdiff.train.process import Process
from fastdiff.train.run import Run
from fastdiff.train.workers import Workers

WANTED = 1.25  # times as fast as the faster of PyTorch's two
ENGINES = ("eager", "eager, plain attention", "fastdiff")
SMALL = UNetConfig(channels=(16, 32), blocks=1, attention_levels=(1,), num_classes=9, groups=4, head_channels=16)


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Networks in the block are computed so."""
    with fastdiff.use("auto" if name == "fastdiff" else "reference"):
        if name == "eager, plain attention":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


class Timed(NetworkObjective):
    """The objective with an engine."""

    engine = ENGINES[0]

    def while_training(self) -> Any:
        return engine(self.engine)


def network(*, small: bool) -> UNet:
    """The bundled network, ready to be trained on, or a small one."""
    if small:
        torch.manual_seed(0)
        found = UNet(SMALL)
        for parameter in found.parameters():  # the last layers begin at zero, and would hide the others' gradients
            nn.init.normal_(parameter, std=0.05)
        return found
    return fastdiff.load("emoji-unet-32").requires_grad_(True)  # type: ignore[return-value]


def batch(count: int, size: int) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """Pictures, classes, noise and times."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    noise = torch.randn(images.shape, generator=generator)
    return images, torch.arange(count) % 9, noise, [(k + 1) / count for k in range(count)]


def gradients(
    model: UNet, process: Process, count: int, size: int, precision: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """All gradients of one batch's loss, in float64."""
    images, labels, noise, times = batch(count, size)
    x0 = (images.to(dtype) / 127.5 - 1).to(device).contiguous(memory_format=torch.channels_last)
    half = precision != "float32" and dtype == torch.float32
    with torch.autocast(device.type, getattr(torch, precision) if half else torch.bfloat16, enabled=half):
        losses = denoising_loss(
            model, process, x0, torch.Generator(), times=times, noise=noise.to(x0), y=labels.to(device)
        )
    found = torch.autograd.grad(losses.mean(), list(model.parameters()))
    return torch.cat([each.detach().double().flatten() for each in found])


def check(
    process: Process, count: int, size: int, precision: str, device: torch.device, *, small: bool
) -> dict[str, float]:
    """The error of each engine's gradients, relative to the norm of those in float64. Raises ValueError if ours is
    more than twice PyTorch's."""
    model = network(small=small).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with engine("eager"):
        exact = gradients(model.double(), process, count, size, precision, device, torch.float64)
    model.float()
    errors = {}
    for name in ENGINES:
        with engine(name):
            found = gradients(model, process, count, size, precision, device, torch.float32)
        errors[name] = float((found - exact).norm() / exact.norm())
    worst = 2 * max(errors[name] for name in ENGINES[:2])
    if not errors["fastdiff"] <= worst:
        raise ValueError(f"the gradients are off by {errors['fastdiff']:.1e}, allowed {worst:.1e}; not timed")
    return errors


def steps(
    run: Run, process: Process, size: int, device: torch.device, folder: Path, *, small: bool
) -> dict[str, Callable[[], float]]:
    """A step of each engine's own run."""
    found = {}
    for name in ENGINES:
        images, labels, _, _ = batch(8 * run.batch, size)
        data = get_data([*zip(images, labels)], fingerprint="random")
        objective = Timed(run, network(small=small), data, process, uncond={"y": 9}, device=device)
        objective.engine = name
        training, workers = Training(objective, folder), Workers(0, 1, device)
        step = workers.step(objective, training.model)

        def one(training: Training = training, workers: Workers = workers, step: nn.Module = step) -> float:
            return training.take_step(workers, step)

        found[name] = one
    return found


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Check, then time. Raises ValueError if the gradients are wrong."""
    size = 8 if options.small else 32
    process = Process.of("cosine", "v")
    run = Run(name="bench", steps=10**6, batch=options.batch, learning_rate=1e-5, precision=options.precision)
    errors = check(process, options.batch, size, options.precision, device, small=options.small)
    with tempfile.TemporaryDirectory() as folder:
        functions = steps(run, process, size, device, Path(folder), small=options.small)
        times = interleave(functions, rounds=options.rounds, device=device)
    seconds = {name: {"median": t.median, "p20": t.p20, "p80": t.p80} for name, t in times.items()}
    best = min(ENGINES[:2], key=lambda name: seconds[name]["median"])
    return {
        "name": "small" if options.small else "emoji-unet-32", "batch": options.batch, "precision": options.precision,
        "device": str(device), "threads": torch.get_num_threads(), "errors": errors, "seconds": seconds,
        "baseline": best, "ratio": seconds[best]["median"] / seconds["fastdiff"]["median"],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{result['name']}, batch {result['batch']}, {result['precision']}, {result['device']}, "
             f"{result['threads']} threads; errors of the gradients against float64"]  # fmt: skip
    for name, found in result["seconds"].items():
        median, low, high = (1e3 * found[key] for key in ("median", "p20", "p80"))
        error = result["errors"][name]
        lines.append(f"  {name:<23} {median:9.1f} ms a step ({low:.1f} to {high:.1f}), error {error:.1e}")
    verdict = "" if result["ratio"] >= WANTED else "NOT "
    lines.append(f"  {result['ratio']:.2f}x of {result['baseline']}, {verdict}the wanted {WANTED}x")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="a small network and pictures of 8 pixels")
    parser.add_argument("--json", help="a file for the numbers")
    options = parser.parse_args()
    try:
        device = arguments.device("--device", options.device)
        arguments.whole("--batch", options.batch, 1)
        arguments.whole("--rounds", options.rounds, 1)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(BAD_ARGUMENT) from error
    result = measure(options, device)
    print(table(result))
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": [result]}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
