"""The engines that bench_models.py compares: how each one makes a call of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ENGINES = ("eager", "fastdiff", "compile", "openvino", "onnxruntime")
ADDED = ("text_embeds", "time_ids")  # what Stable Diffusion XL takes in a dictionary


class Plain(nn.Module):
    """A model of diffusers that takes tensors by position and gives one."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(self.names, inputs))
        added = {name: named.pop(name) for name in ADDED if name in named}
        result = self.model(**named, **({"added_cond_kwargs": added} if added else {}))
        return result if isinstance(result, Tensor) else result[0]


class Call:
    """A call of a model in PyTorch."""

    def __init__(self, function: Callable[..., Tensor], model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.function, self.model, self.inputs = function, model, inputs

    def __call__(self) -> Tensor:
        return self.function(*self.inputs)


def engine(name: str, model: Plain, inputs: tuple[Tensor, ...], folder: Path, threads: int) -> Callable[[], Tensor]:
    """A call of the model by one of the engines. What it exports stays in the folder, and is used if it is there."""
    if name == "eager":
        return Call(model, model, inputs)
    if name == "fastdiff":
        import fastdiff

        fastdiff.optimize(model)
        return Call(model, model, inputs)
    if name == "compile":
        if inputs[0].is_cuda:  # as it is fastest there
            model.to(memory_format=torch.channels_last)
            compiled = torch.compile(model, mode="reduce-overhead")
        else:
            compiled = torch.compile(model)
        return Call(compiled, model, inputs)
    return (_openvino if name == "openvino" else _onnxruntime)(model, inputs, folder, threads)


def _openvino(model: Plain, inputs: tuple[Tensor, ...], folder: Path, threads: int) -> Callable[[], Tensor]:
    import openvino as ov

    path = folder / "model.xml"
    if not path.exists():
        with warnings.catch_warnings():  # of what tracing fixes: the result is checked
            warnings.simplefilter("ignore")
            converted = ov.convert_model(model, example_input=inputs)
        ov.save_model(converted, path, compress_to_fp16=False)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(path, "CPU", options).create_infer_request()
    arrays = [tensor.numpy() for tensor in inputs]
    return lambda: torch.from_numpy(request.infer(arrays)[0])


def _onnxruntime(model: Plain, inputs: tuple[Tensor, ...], folder: Path, threads: int) -> Callable[[], Tensor]:
    import onnxruntime

    path = folder / "model.onnx"
    if not path.exists():
        with warnings.catch_warnings():  # as above, and of how old tracing is
            warnings.simplefilter("ignore")
            torch.onnx.export(model, inputs, str(path), input_names=list(model.names), dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in zip(model.names, inputs)}
    feed = {given.name: feed[given.name] for given in session.get_inputs()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])
