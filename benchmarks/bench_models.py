"""Whole models: fastdiff.optimize against eager PyTorch, torch.compile, OpenVINO and ONNX Runtime.

    python benchmarks/bench_models.py [--rows ddpm,sd,vae,dit] [--peers compile,openvino,onnxruntime] [--json FILE]

Random weights, float32. Every engine runs in a process of its own, without a binding of threads to cores, and takes
turns with the others: a call that is not timed, then those that are. Before that its result is checked, against eager
in float64 where that fits into memory, else in float32, which one more process computes. Where memory does not hold all
engines at once, each starts anew in every round. Peers need the extra `bench`; torch.compile needs a C++ compiler. A
row with all peers takes minutes, most of them in their exports. The row `small` is a quick check of this file."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import ENGINES, Plain, engine
from torch import Tensor, nn

from fastdiff.bench.suites import BAD_ARGUMENT, MODELS
from fastdiff.bench.turns import Worker, available_memory, serve, take_turns

WANTED = {"ddpm": 2.0, "sd": 1.6, "vae": 2.7, "dit": 1.12}  # times as fast as the best peer
PEERS = ENGINES[2:]
TOLERANCE = 1e-4  # of the output's RMS


def build(row: str) -> tuple[Plain, tuple[Tensor, ...]]:
    """The model of a row, with random weights, and its inputs."""
    import diffusers

    with torch.device("meta"):
        if row == "small":
            model: nn.Module = diffusers.UNet2DModel(
                sample_size=16,
                block_out_channels=(32, 32),
                layers_per_block=1,
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
            )
        elif row == "ddpm":  # google/ddpm-cifar10-32
            model = diffusers.UNet2DModel(
                sample_size=32,
                block_out_channels=(128, 256, 256, 256),
                down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            )
        elif row == "sd":  # Stable Diffusion 1.5
            model = diffusers.UNet2DConditionModel(cross_attention_dim=768)
        elif row == "vae":
            model = diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ).decoder
        else:  # DiT-XL/2
            model = diffusers.DiTTransformer2DModel(
                num_attention_heads=16,
                attention_head_dim=72,
                num_layers=28,
                sample_size=32,
                out_channels=8,
                num_embeds_ada_norm=1000,
                norm_type="ada_norm_zero",
                norm_elementwise_affine=False,
            )
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-1, 1, generator=generator).mul_((3 / parameter[0].numel()) ** 0.5)
        else:
            parameter.uniform_(-0.1, 0.1, generator=generator).add_("norm" in name and name.endswith("weight"))
    for buffer in model.buffers():
        buffer.uniform_(-1, 1, generator=generator)
    make: dict[str, Callable[[], dict[str, Tensor]]] = {
        "small": lambda: {"sample": torch.randn(2, 3, 16, 16), "timestep": torch.full((2,), 500)},
        "ddpm": lambda: {"sample": torch.randn(8, 3, 32, 32), "timestep": torch.full((8,), 500)},
        "sd": lambda: {
            "sample": torch.randn(2, 4, 64, 64),
            "timestep": torch.full((2,), 500),
            "encoder_hidden_states": torch.randn(2, 77, 768),
        },
        "vae": lambda: {"sample": torch.randn(1, 4, 64, 64)},
        "dit": lambda: {
            "hidden_states": torch.randn(2, 4, 32, 32),
            "timestep": torch.tensor([500, 500]),
            "class_labels": torch.tensor([1, 2]),
        },
    }
    torch.manual_seed(0)
    inputs = make[row]()
    return Plain(model, tuple(inputs)).eval(), tuple(inputs.values())


@torch.no_grad()
def expected(row: str, file: Path) -> dict[str, Any]:
    """Write what the model gives, in float64 where that fits; says in which dtype, and the bytes of the weights."""
    model, inputs = build(row)
    size = sum(parameter.numel() for parameter in model.parameters())
    wide = size <= 200_000_000
    if wide:
        model, inputs = model.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
    torch.save(model(*inputs).double(), file)
    return {"against": "float64" if wide else "float32", "bytes": 4 * size}


def prepare(row: str, name: str, folder: Path, threads: int) -> tuple[Callable[[], Tensor], dict[str, Any]]:
    """The engine's call, after its first result was checked. Raises ValueError if that is wrong."""
    torch.set_num_threads(threads)
    model, inputs = build(row)
    own = folder / name
    own.mkdir(exist_ok=True)
    started = time.perf_counter()
    call = engine(name, model, inputs, own, threads)
    del model  # a peer has weights of its own
    out = call()
    first = time.perf_counter() - started
    exact = torch.load(folder / "expected.pt")
    error = float((out.double() - exact).abs().max() / exact.square().mean().sqrt())
    if not error <= TOLERANCE:
        raise ValueError(f"differs by {error:.1e} of the output's RMS; not timed")
    return call, {"first": first, "error": error}


def measure(row: str, names: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Check every engine, then time them in turns. Raises RuntimeError if eager or fastdiff fails: no row without."""
    with tempfile.TemporaryDirectory() as folder:

        def command(name: str) -> list[str]:
            return [sys.executable, __file__, f"--threads={threads}", "--engine", row, name, folder]

        truth = Worker(command("expected"))
        truth.close()
        if "failed" in truth.answer:
            raise RuntimeError(f"{row}: {truth.answer['failed']}")
        facts, memory = truth.answer, available_memory()
        together = memory is None or 3 * facts["bytes"] * len(names) < memory
        results = take_turns({name: command(name) for name in names}, rounds=rounds, together=together)
    for name, found in results.items():
        if "failed" in found and name in ENGINES[:2]:
            raise RuntimeError(f"{row}: {name}: {found['failed']}")
        if "failed" not in found:
            found.update(zip(("median", "p20", "p80"), np.percentile(found["all"], (50, 20, 80)).tolist()))
    return {"row": row, "against": facts["against"], "threads": threads, "together": together, "engines": results}


def table(result: dict[str, Any]) -> str:
    """One row, for people."""
    engines = result["engines"]
    apart = "" if result["together"] else ", a new process for every round"
    lines = [f"{result['row']}: {result['threads']} threads, checked against {result['against']}{apart}"]
    for name, found in engines.items():
        if "failed" in found:
            lines.append(f"  {name:<12} {found['failed']}")
            continue
        text = f"{found['median']:8.3f} s ({found['p20']:.3f} to {found['p80']:.3f})"
        memory = f"peak {found['peak'] / 1e6:,.0f} MB" + (", its export included" if name in PEERS[1:] else "")
        lines.append(f"  {name:<12} {text}, first call {found['first']:.1f} s, error {found['error']:.1e}, {memory}")
    ours = engines["fastdiff"]
    ratio = min(found["median"] for name, found in engines.items() if name != "fastdiff" and "median" in found)
    ratio /= ours["median"]
    wanted = WANTED.get(result["row"])
    goal = "" if wanted is None else f", {'' if ratio >= wanted else 'NOT '}the wanted {wanted}x"
    lines.append(f"  {ratio:.2f}x of the best peer{goal}")
    lines.append(f"  {ours['peak'] / engines['eager']['peak']:.2f}x of eager's peak memory, wanted at most 1.8x")
    return "\n".join(lines)


def as_row(result: dict[str, Any]) -> dict[str, Any]:
    """As `fastdiff bench` keeps it: the baseline is the fastest of the others."""
    seconds = {
        {"fastdiff": "ours"}.get(name, name): {key: engine[key] for key in ("median", "p20", "p80")}
        for name, engine in result["engines"].items()
        if "median" in engine
    }
    others = [name for name in seconds if name != "ours"]
    best = min(others, key=lambda name: seconds[name]["median"])
    return {"name": result["row"], "seconds": seconds, "baseline": best, "engines": result["engines"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="ddpm,vae,dit,sd")
    parser.add_argument("--peers", default=",".join(PEERS), help="of compile, openvino, onnxruntime; or none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of every engine; as many as PyTorch would take if not given")
    parser.add_argument("--json", help="a file for the numbers")
    parser.add_argument("--engine", nargs=3, metavar=("ROW", "ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        row, name, folder = options.engine
        if name == "expected":
            serve(lambda: (lambda: None, expected(row, Path(folder) / "expected.pt")))
            return
        with torch.no_grad():
            serve(lambda: prepare(row, name, Path(folder), options.threads))
        return
    results = []
    for row in options.rows.split(","):
        if row not in MODELS:
            print(f"unknown row {row!r}; known: {', '.join(MODELS)}", file=sys.stderr)
            raise SystemExit(BAD_ARGUMENT)
        names = [*ENGINES[:2], *(name for name in options.peers.split(",") if name in PEERS)]
        results.append(measure(row, names, options.rounds, options.threads or torch.get_num_threads()))
        print(table(results[-1]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": [as_row(result) for result in results]}, indent=1))


if __name__ == "__main__":
    main()
