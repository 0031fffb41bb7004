"""Layers of one input as one product, and what blocks make of the condition at once: as on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compiler.as_on_gpu import agrees, called, matches, stand_in
from compiler.test_changes import WAYS
from compiler.test_passes import transformer
from torch import nn

import fastdiff
from fastdiff import ops
from fastdiff.compiler import joined, nodes
from fastdiff.compiler.report import reports_of


@pytest.fixture(autouse=True)
def _as_on_gpu(monkeypatch):
    stand_in(monkeypatch)


class Attention(nn.Module):
    """q, k and v of x, k and v of the text; layers with and without biases."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, size, bias=bias) for size in (16, 16, 32))
        self.cross_q, self.cross_k, self.cross_v = (nn.Linear(size, 16, bias=bias) for size in (32, 24, 24))

    def forward(self, x, text):
        def heads(y):
            return y.view(*y.shape[:2], 2, -1).transpose(1, 2)

        x = x.flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(*(heads(layer(x)) for layer in (self.q, self.k, self.v)))
        h = self.cross_q(h.transpose(1, 2).flatten(2))
        h = F.scaled_dot_product_attention(heads(h), heads(self.cross_k(text)), heads(self.cross_v(text)))
        return h.transpose(1, 2).flatten(2)


def given(rows: int = 9, batch: int = 2):
    return torch.randn(batch, 16, rows, 2), torch.randn(batch, 7, 24)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_one_input_are_one_product(bias):
    torch.manual_seed(0)
    model = fastdiff.optimize(Attention(bias=bias).eval())
    for batch, rows in ((2, 9), (2, 9), (3, 5), (4, 12)):
        agrees(model, *given(rows, batch))
    assert matches(model, "joined") == [5, 5]  # once for any sizes
    assert called(model).count("JoinedLinear") == called(model, 1).count("JoinedLinear") == 2
    assert "joinedlinear" in str(fastdiff.explain(model, given()))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_joined_product_chooses_among_the_candidates_of_linear_layers(bias, monkeypatch):
    """As those of few rows, which read a wide weight once."""
    asked, run = [], ops.linear.run

    def noted(a, inplace=False):
        asked.append((tuple(a.x.shape), tuple(a.weight.shape), a.bias is not None))
        return run(a, inplace)

    monkeypatch.setattr(ops.linear, "run", noted)
    layers = [nn.Linear(24, 16, bias=bias) for _ in range(3)]
    tensors = [layer.weight for layer in layers] + [layer.bias for layer in layers if bias]
    module, x = joined.JoinedLinear(3, bias), torch.randn(2, 24)
    ours, separate = module(x, *tensors), torch.cat([layer(x) for layer in layers], -1)
    torch.testing.assert_close(ours, separate, rtol=1e-5, atol=1e-6)
    assert ours.shape == (2, 48)
    assert asked == [((1, 2, 24), (48, 24), bias)]


def test_weights_lie_next_to_each_other_and_once():
    model = fastdiff.optimize(Attention().eval())
    with torch.no_grad():
        model(*given())
    for layers in ((model.q, model.k, model.v), (model.cross_k, model.cross_v)):
        for name in ("weight", "bias"):
            tensors = [getattr(layer, name) for layer in layers]
            assert len({t.untyped_storage()._cdata for t in tensors}) == 1
            assert tensors[0].untyped_storage().nbytes() == sum(t.nbytes for t in tensors)
            assert all(isinstance(t, nn.Parameter) and t.is_contiguous() for t in tensors)


@pytest.mark.parametrize("name", ["joined", "condition"])
def test_turned_off(name):
    model = fastdiff.optimize(transformer("dit")[0], disable=[name])
    agrees(model, *transformer("dit")[1])
    names = called(model)
    assert (names.count("JoinedLinear"), names.count("StackedLinear")) == ((1, 2) if name == "joined" else (5, 0))


def test_on_the_cpu_nothing_is_moved(monkeypatch):
    monkeypatch.undo()
    model = fastdiff.optimize(Attention().eval())
    agrees(model, *given())
    assert matches(model, "joined") == [0]
    assert model.q.weight.untyped_storage()._cdata != model.k.weight.untyped_storage()._cdata


@pytest.mark.parametrize("way", WAYS)
def test_a_change_of_a_joined_weight_is_seen_at_the_next_call(way, monkeypatch):
    monkeypatch.setattr("compiler.test_changes.KINDS", dict.fromkeys(("k", "v", "cross_v"), "weight"))
    torch.manual_seed(0)
    model = fastdiff.optimize(Attention().eval())
    inputs = given()
    with torch.no_grad():
        for _ in range(3):
            model(*inputs)
        for kind in ("k", "v", "cross_v"):
            before = model._call_impl(*inputs)
            WAYS[way](model, kind)
            right = model._call_impl(*inputs)
            assert not torch.equal(before, right)
            for _ in range(2):
                torch.testing.assert_close(model(*inputs), right, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_state_dict_that_somebody_holds_stays_the_models(monkeypatch):
    """Its tensors share the weights' memory, so that is not moved."""
    model = Attention().eval()
    held = model.state_dict()
    fast = fastdiff.optimize(model)
    agrees(fast, *given())
    held["k.weight"].mul_(3)
    assert torch.equal(held["k.weight"], model.k.weight)
    agrees(fast, *given())
    assert "another tensor" in str(fastdiff.runtime.choice.notes())


@torch.no_grad()
def test_weights_that_others_move_as_well_stay_apart_in_the_end():
    model = fastdiff.optimize(Attention().eval())
    inputs = given()
    for _ in range(joined._MOVES + 2):
        model(*inputs)
        model.k.weight.data = model.k.weight.data.clone()
    agrees(model, *inputs)
    assert model.q.weight.untyped_storage()._cdata != model.k.weight.untyped_storage()._cdata
    model.k.weight.mul_(2)
    agrees(model, *inputs)


@torch.no_grad()
def test_a_layer_used_twice_and_tied_weights():
    class Tied(Attention):
        def __init__(self):
            super().__init__()
            self.k.weight = self.q.weight

    model = fastdiff.optimize(Tied().eval())
    agrees(model, *given())
    assert model.k.weight is model.q.weight


@torch.no_grad()
def test_copies_and_saved_files_have_the_weights(tmp_path):
    model = Attention().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = fastdiff.optimize(model)
    fast(*given())
    fastdiff.restore(fast)
    torch.save(fast.state_dict(), tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(fast.state_dict(), tmp_path / "weights.safetensors")
    again = safetensors.load_file(tmp_path / "weights.safetensors")
    for name, tensor in before.items():
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(again[name], tensor)


def test_in_inference_mode():
    model = fastdiff.optimize(Attention().eval())
    with torch.inference_mode():
        inputs = given()
        torch.testing.assert_close(model(*inputs), model._call_impl(*inputs))
    assert not model.q.weight.is_inference()
    assert model.q.weight.untyped_storage()._cdata == model.k.weight.untyped_storage()._cdata


# Layers that the passes "condition" and "joined" make one of others. SD3 has two streams, our DiT q, k, v in one layer.
TRANSFORMERS = {"dit": (21, 9), "pixart": (0, 9 + 6), "sd3": (0, 7 + 18), "ours": (0, 4)}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    model, inputs, _ = transformer(name)
    fast = fastdiff.optimize(model)
    for _ in range(2):
        agrees(fast, *inputs)
    agrees(fast, *(torch.cat((x, x[:1])) if isinstance(x, torch.Tensor) else x for x in inputs))  # any batch
    found = list(zip(matches(fast, "condition"), matches(fast, "joined"), strict=True))
    assert found == [TRANSFORMERS[name]] * 2


def test_the_time_and_the_label_of_all_blocks_at_once():
    """In diffusers' DiT: one embedding of the label, one of the time, one modulation, whatever the number of blocks."""
    model, inputs, _ = transformer("dit")
    fast = fastdiff.optimize(model)
    agrees(fast, *inputs)
    names = called(fast)
    assert names.count("StackedEmbedding") == 1
    assert names.count("StackedLinear") == 2
    assert names.count("JoinedLinear") == 1 + 3  # the time's first layer; q, k, v of each block
    assert names.count("sin") == names.count("cos") == 1
    assert names.count("silu") == 2


@pytest.mark.parametrize(("name", "layers"), [("sd3", [7]), ("pixart", [])])
def test_modulations_of_all_blocks_are_one_product(name, layers):
    """SD3's layers read one embedding; PixArt has one layer, and a table for each block."""
    model, inputs, _ = transformer(name)
    fast = fastdiff.optimize(model)
    agrees(fast, *inputs)
    (report,) = reports_of(list(fast.parameters()))
    parts = dict(report.graph.module.named_modules(remove_duplicate=False))
    kept = [part.module for part in parts.values() if type(part).__name__ == "Kept"]
    for inner in kept:
        parts |= dict(inner.named_modules(remove_duplicate=False))
    found = [
        (parts[node.target].count, nodes.rank(node.args[0]))
        for module in (report.graph.module, *kept)
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(parts.get(node.target), joined.JoinedLinear)
    ]
    assert [count for count, rank in found if rank == 2] == layers


def test_flux():
    """Between q, k and v and the attention are norms, which copy what is not contiguous: they stay apart."""
    diffusers = pytest.importorskip("diffusers", reason="the networks are diffusers'")
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=24, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval()  # fmt: skip
    fast = fastdiff.optimize(model)
    for batch, height, width in ((1, 4, 4), (1, 4, 4), (2, 6, 4)):
        places = torch.zeros(height * width, 3)
        places[:, 1] = torch.arange(height * width) // width
        places[:, 2] = torch.arange(height * width) % width
        agrees(
            fast, torch.randn(batch, height * width, 4), torch.randn(batch, 7, 32), torch.randn(batch, 24),
            torch.full((batch,), 0.35), places, torch.zeros(7, 3), torch.full((batch,), 3.5),
        )  # fmt: skip
    assert matches(fast, "joined") == [7, 7]  # modulations: of two streams in two blocks, of two blocks, of the end
    assert matches(fast, "attention") == [4, 4]
    assert matches(fast, "residual_ada_layer_norm") == [6, 6]
    for number in range(2):
        assert called(fast, number).count("JoinedLinear") == 1


def test_the_device_is_that_of_the_graphs_inputs(monkeypatch):
    monkeypatch.undo()
    graph = torch.fx.Graph()
    assert nodes.device_of(graph).type == "cpu"
    for device in ("cpu", "meta"):
        graph.placeholder(device).meta["example_value"] = torch.empty(1, device=device)
    assert nodes.device_of(graph).type == "meta"
    assert not nodes.on_gpu(graph)
