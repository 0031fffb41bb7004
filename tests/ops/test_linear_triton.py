"""The products of linear layers in Triton: interpreted, compiled for GPUs that are not here, and as candidates."""

import pytest
import torch
from launches import half, launches
from triton_process import TARGETS, compile_ahead, interpret  # skips without Triton

from fastdiff import ops
from fastdiff.kernels.linear import Tile, linear
from fastdiff.runtime import candidates, choice, device
from fastdiff.runtime import triton as triton_kernels


@pytest.mark.parametrize("program", ["numbers", "described", "strides", "few", "candidates", "tables"])
def test_in_the_interpreter(program):
    interpret("linear", program)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("linear", target)


@pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets in this process")
def test_tensor_descriptors_reach_the_driver_past_tritons_own_path(monkeypatch):
    """As by Triton's own path; of the tensors of each call, none of which is kept. The GPU is a stand-in."""
    pytest.importorskip("triton.tools.tensor_descriptor", reason="this Triton has no tensor descriptors")
    tile, weight, bias = Tile(64, 32, 64, 4, 2, True), half(48, 128), half(48)
    with launches(monkeypatch) as launched:
        found = [
            launched.by(lambda x=x: linear(x, weight, bias, tile=tile)) for x in (half(2, 40, 128), half(2, 40, 128))
        ]
        by_pointers = launched.by(lambda: linear(half(2, 40, 136)[..., 4:132], weight, bias, tile=tile))
    (by_triton,), (at_once,), (odd,) = *found, by_pointers
    assert at_once[6:9] == (None, None, None)
    for launch in (by_triton, at_once):
        x, w = launch[9:11]
        assert (x.shape, x.strides, x.block_shape) == ([80, 128], [128, 1], [64, 64])
        assert (w.shape, w.strides, w.block_shape) == ([48, 128], [128, 1], [32, 64])
        assert launch[:3] == (2 * 2, 1, 1)
    assert by_triton[3:6] == at_once[3:6]
    assert by_triton[15:] == at_once[15:]
    assert by_triton[10].base.data_ptr() == at_once[10].base.data_ptr() == weight.data_ptr()
    assert by_triton[9].base.data_ptr() != at_once[9].base.data_ptr()
    assert not hasattr(odd[9], "block_shape")


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "options", "chosen"),
    [
        (8192, 320, 2560, "geglu", "triton"),
        (512, 1280, 10240, "geglu", "cublas, gate by triton"),
        (8192, 320, 320, "residual", "triton"),
        (8192, 1280, 320, "residual", "torch"),
        (2048, 640, 640, "residual", "triton"),
        (2048, 2560, 640, "residual", "torch"),
        (512, 5120, 1280, "residual", "torch"),
        (512, 1152, 1152, "gate residual", "triton"),
        (512, 4608, 1152, "gate residual", "torch"),
        (2, 1152, 28 * 6912, "", "triton"),
    ],
)
def test_what_a_draft_was_quicker_at_comes_first_where_nothing_is_timed(
    rows, inputs, outputs, options, chosen, monkeypatch, standing_in
):
    monkeypatch.setenv("FASTDIFF_TUNE", "0")
    monkeypatch.setattr(device, "ABSENT", device.Device("sm_90", 132, 50 << 20, "sm_90"))
    monkeypatch.setattr(choice, "out_of_reach", lambda name, tensor: None)
    one = torch.zeros(1, dtype=torch.float16)
    after = dict.fromkeys(options.split(), one.expand(2, rows // 2, outputs)) if options != "geglu" else {}
    if "gate" in after:
        after["gate"] = after["gate"][:, :1]
    unit = dict(activation="gelu", glu=True) if options == "geglu" else {}
    x, weight, bias = one.expand(2, rows // 2, inputs), one.expand(outputs, inputs), one.expand(outputs)
    found = ops.linear.decide(ops.linear.Arguments(x, weight, bias, **after, **unit))
    assert (found.name, found.settled) == (chosen, True)
    (line,) = candidates.lines()
    assert "the default, not measured" in line
