"""Whole models: fastdiff.optimize against eager PyTorch, torch.compile, OpenVINO and ONNX Runtime.

    python benchmarks/bench_models.py [--rows ddpm,sd,vae,dit] [--peers compile,openvino,onnxruntime] [--json FILE]

Random weights, float32. Every row runs in a process of its own, where all engines take turns of two calls, of which the
second is timed, after the result of each was checked: against eager in float64 where that fits into memory, else in
float32. Peak memory is that of one more process each for eager and fastdiff. Peers need the extra `bench`;
torch.compile needs a C++ compiler. A row with all peers takes minutes, most of them in their exports."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WANTED = {"ddpm": 2.0, "sd": 1.6, "vae": 2.7, "dit": 1.12}  # times as fast as the best peer
PEERS = ("compile", "openvino", "onnxruntime")
TOLERANCE = 1e-4  # of the output's RMS


class Plain(nn.Module):
    """A model of diffusers that takes tensors by position and gives one."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.model(**dict(zip(self.names, inputs)))
        return result if isinstance(result, Tensor) else result[0]


def build(row: str) -> tuple[Plain, tuple[Tensor, ...]]:
    """The model of a row, with random weights, and its inputs."""
    import diffusers

    with torch.device("meta"):
        if row == "ddpm":  # google/ddpm-cifar10-32
            model: nn.Module = diffusers.UNet2DModel(
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


def engine(name: str, model: Plain, inputs: tuple[Tensor, ...], folder: str, threads: int) -> Callable[[], Tensor]:
    """A call of the model by one of the engines."""
    if name == "eager":
        return lambda: model._call_impl(*inputs)
    if name == "fastdiff":
        import fastdiff

        fastdiff.optimize(model)
        return lambda: model(*inputs)
    if name == "compile":
        compiled = torch.compile(model._call_impl)
        return lambda: compiled(*inputs)
    if name == "openvino":
        import openvino as ov

        with warnings.catch_warnings():  # as below
            warnings.simplefilter("ignore")
            converted = ov.convert_model(Plain(model.model, model.names), example_input=inputs)
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        request = ov.compile_model(converted, "CPU", options).create_infer_request()
        arrays = [tensor.numpy() for tensor in inputs]
        return lambda: torch.from_numpy(request.infer(arrays)[0])
    import onnxruntime

    path = os.path.join(folder, "model.onnx")
    names = list(model.names)
    with warnings.catch_warnings():  # of what tracing fixes and how old it is: the result is checked
        warnings.simplefilter("ignore")
        torch.onnx.export(Plain(model.model, model.names), inputs, path, input_names=names, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs)}
    feed = {given.name: feed[given.name] for given in session.get_inputs()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def expected(model: Plain, inputs: tuple[Tensor, ...]) -> tuple[Tensor, str]:
    """What the model gives, in float64 where that fits, and in which dtype."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > 200_000_000:
        return model._call_impl(*inputs), "float32"
    wide = model.double()._call_impl(*(x.double() if x.is_floating_point() else x for x in inputs))
    model.float()  # exact: the values were float32's
    return wide, "float64"


@torch.inference_mode(False)
@torch.no_grad()
def measure(row: str, names: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Check every engine, then time them in turns."""
    torch.set_num_threads(threads)
    model, inputs = build(row)
    exact, against = expected(model, inputs)
    calls: dict[str, Callable[[], Tensor]] = {}
    result: dict[str, Any] = {"row": row, "against": against, "threads": threads, "engines": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            started = time.perf_counter()
            try:
                call = engine(name, model, inputs, folder, threads)
                out = call()
            except Exception as error:  # a peer that cannot take the model is reported, and the others go on
                if name in ("eager", "fastdiff"):
                    raise
                result["engines"][name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
                continue
            first = time.perf_counter() - started
            error = float((out.double() - exact.double()).abs().max() / exact.double().square().mean().sqrt())
            result["engines"][name] = {"first": first, "error": error}
            if error > TOLERANCE:
                result["engines"][name]["failed"] = f"differs by {error:.1e} of the output's RMS; not timed"
                continue
            calls[name] = call
            gc.collect()
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                # As in a sampling loop, where the call before was the same engine's. After the peers' exports, which
                # change what Dynamo guards, it may also compile once more.
                call()
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
    for name, found in seconds.items():
        median, p20, p80 = np.percentile(found, (50, 20, 80)).tolist()
        result["engines"][name].update(median=median, p20=p20, p80=p80)
    return result


@torch.no_grad()
def peak(row: str, name: str, threads: int) -> dict[str, float]:
    """MB at most, and seconds of the first call, in a process of its own."""
    torch.set_num_threads(threads)
    model, inputs = build(row)
    started = time.perf_counter()
    call = engine(name, model, inputs, "", threads)
    call()
    first = time.perf_counter() - started
    call()
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "first": first}


def child(*arguments: str) -> Any:
    """The JSON that this file prints when it is called with these."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def table(result: dict[str, Any]) -> str:
    """One row, for people."""
    engines = result["engines"]
    lines = [f"{result['row']}: {result['threads']} threads, checked against {result['against']}"]
    for name, found in engines.items():
        if "failed" in found:
            lines.append(f"  {name:<12} {found['failed']}")
            continue
        text = f"{found['median']:8.3f} s ({found['p20']:.3f} to {found['p80']:.3f})"
        memory = f", peak {found['peak']:,.0f} MB" if "peak" in found else ""
        lines.append(f"  {name:<12} {text}, first call {found['first']:.1f} s, error {found['error']:.1e}{memory}")
    peers = [found["median"] for name, found in engines.items() if name != "fastdiff" and "median" in found]
    ours = engines["fastdiff"]
    if "median" in ours:
        ratio, wanted = min(peers) / ours["median"], WANTED[result["row"]]
        lines.append(f"  {ratio:.2f}x of the best peer, {'' if ratio >= wanted else 'NOT '}the wanted {wanted}x")
    if "peak" in ours:
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="a file for the numbers")
    parser.add_argument("--memory", choices=("yes", "no"), default="yes")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        row, what = options.child
        if what == "all":
            names = ["eager", "fastdiff", *(name for name in options.peers.split(",") if name in PEERS)]
            print(json.dumps(measure(row, names, options.rounds, options.threads)))
        else:
            print(json.dumps(peak(row, what, options.threads)))
        return
    common = [f"--threads={options.threads}", f"--rounds={options.rounds}", f"--peers={options.peers}"]
    results = []
    for row in options.rows.split(","):
        result = child(*common, "--child", row, "all")
        if options.memory == "yes":
            for name in ("eager", "fastdiff"):
                result["engines"][name].update(child(*common, "--child", row, name))
        print(table(result), flush=True)
        results.append(result)
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": [as_row(result) for result in results]}, indent=1))


if __name__ == "__main__":
    main()
