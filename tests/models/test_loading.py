"""Checkpoints: every form of file, layouts found and refused, what does not fit is listed, nothing in a file is run."""

import argparse
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastdiff
from fastdiff import WeightsError
from fastdiff.models.checkpoints.layout import LAYOUTS
from fastdiff.models.checkpoints.loading import build, complete

CONFIG = dict(input_size=8, hidden_size=48, depth=2, num_heads=4, num_classes=5)
HEADS = {"num_heads": 4}
DIT = next(layout for layout in LAYOUTS if layout.name == "dit")


def original_state():
    """A small DiT's state dict as its authors name it."""
    full = complete(DIT, CONFIG)
    generator = torch.Generator().manual_seed(0)
    return {
        DIT.original(name, full): torch.randn(value.shape, generator=generator)
        for name, value in build(DIT, full).state_dict().items()
    }


@pytest.fixture
def state():
    return original_state()


def check(model, state):
    full = complete(DIT, CONFIG)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[DIT.original(name, full)]), name
        assert not value.requires_grad


@pytest.fixture
def file(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


# ---- forms ----------------------------------------------------------------------------------------------------------


def test_state_dict(state):
    model = fastdiff.models.load(state, config=HEADS)
    check(model, state)
    assert model.patches.weight.data_ptr() == state["x_embedder.proj.weight"].data_ptr()  # no copy


def test_safetensors(file, state):
    check(fastdiff.models.load(file, config=HEADS), state)
    check(fastdiff.models.load(str(file), layout="dit", config=CONFIG), state)


def test_what_a_file_is_and_not_what_it_is_called(file, tmp_path, state):
    shutil.copy(file, tmp_path / "model.ckpt")
    torch.save(state, tmp_path / "weights")
    check(fastdiff.models.load(tmp_path / "model.ckpt", config=HEADS), state)
    check(fastdiff.models.load(tmp_path / "weights", config=HEADS), state)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", ["ema", "ema_model", "model_ema", "ema_state_dict", "state_dict", "model", "none"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_torch_save(tmp_path, state, zipped, wrapped, prefix):
    """As training scripts save: the average over training beside other weights, arguments, counters."""
    content = {prefix + key: value for key, value in state.items()}
    if wrapped != "none":
        other = {key: torch.zeros_like(value) for key, value in content.items()}
        content = {"model": other, "step": 3, "args": argparse.Namespace(lr=0.1), wrapped: content}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    check(fastdiff.models.load(tmp_path / "model.pt", config=HEADS), state)


def test_the_average_of_torch(tmp_path, state):
    """AveragedModel counts beside the weights."""
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{key}": value for key, value in state.items()}}
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"model": other, "ema_model": averaged}, tmp_path / "model.pt")
    check(fastdiff.models.load(tmp_path / "model.pt", config=HEADS), state)


def diffusers_model():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=12, num_layers=3, sample_size=16,
                                           num_embeds_ada_norm=10)  # fmt: skip


def outputs(model):
    y = torch.tensor([1, 9])
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 2048).reshape(2, 4, 16, 16), torch.tensor([3.0, 777.0]), y)


@pytest.mark.parametrize("form", [
    "one", "shards", "fp16", "shards-fp16", "pickle", "pickle-shards", "pickle-fp16", "pickle-shards-fp16", "pipeline",
    "state dict",
])  # fmt: skip
def test_diffusers_folders(tmp_path, form):
    theirs = diffusers_model().eval()
    whole = tmp_path / "transformer"
    sizes = {"max_shard_size": "200KB"} if "shards" in form else {}
    theirs.save_pretrained(whole, safe_serialization="pickle" not in form,
                           variant="fp16" if "fp16" in form else None, **sizes)  # fmt: skip
    assert len([*whole.glob("*.safetensors"), *whole.glob("*.bin")]) > 1 or "shards" not in form
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "scheduler").mkdir()
    if form == "pipeline":
        with pytest.raises(WeightsError, match="several models; part must be one of transformer"):
            fastdiff.models.load(tmp_path)
        with pytest.raises(ValueError, match="unknown part 'unet'"):
            fastdiff.models.load(tmp_path, part="unet")
        ours = fastdiff.models.load(tmp_path, part="transformer")
    elif form == "state dict":
        ours = fastdiff.models.load(theirs.state_dict(), config=dict(theirs.config))
    else:
        ours = fastdiff.models.load(whole)
    torch.testing.assert_close(outputs(ours), outputs(theirs).sample, rtol=1e-4, atol=1e-5)


def test_dtype(file, state):
    model = fastdiff.models.load(file, config=HEADS, dtype=torch.bfloat16)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    torch.testing.assert_close(model.patches.weight.float(), state["x_embedder.proj.weight"], rtol=1e-2, atol=0)


def test_a_model_may_be_trained_and_the_file_stays(file, state):
    """The mapping is private: pages that are written to are copied."""
    model = fastdiff.models.load(file, config=HEADS)
    model.requires_grad_(True)
    with torch.no_grad():
        model.final.linear.weight.zero_()
    assert torch.equal(load_file(file)["final_layer.linear.weight"], state["final_layer.linear.weight"])


# ---- what does not fit ----------------------------------------------------------------------------------------------


def test_one_error_lists_all_keys(state):
    del state["blocks.1.attn.qkv.bias"], state["t_embedder.mlp.2.weight"]
    state["blocks.1.attn.scale"] = torch.zeros(3)
    state["final_layer.linear.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError) as caught:
        fastdiff.models.load(state, config=HEADS)
    message = str(caught.value)
    assert "missing: blocks.1.attn.qkv.bias, t_embedder.mlp.2.weight;" in message
    assert "left over: blocks.1.attn.scale;" in message
    assert "misshapen: final_layer.linear.bias is (7,), expected (32,)." in message


def test_a_missing_key_that_tells_a_size(state):
    del state["x_embedder.proj.weight"]
    with pytest.raises(WeightsError, match=r"has no x_embedder.proj.weight, which layout dit has"):
        fastdiff.models.load(state, layout="dit")
    with pytest.raises(WeightsError, match=r"missing: x_embedder.proj.weight\.$"):
        fastdiff.models.load(state, layout="dit", config=CONFIG)
    with pytest.raises(WeightsError, match=r"no checkpoint that is known. The nearest layout is dit. Known are "):
        fastdiff.models.load(state)


def test_long_lists_are_cut(state):
    state |= {f"extra.{index:03}": torch.zeros(1) for index in range(50)}
    with pytest.raises(WeightsError, match=r"extra.019 and 30 more\."):
        fastdiff.models.load(state, config=HEADS)


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [("hidden_size", 96, 48), ("depth", 3, 2), ("num_classes", 1000, 5), ("patch_size", 4, 2), ("input_size", 32, 8),
     ("learn_sigma", False, True), ("mlp_ratio", 3.0, 4.0), ("in_channels", 3, 4)],
)  # fmt: skip
def test_a_config_that_is_not_the_weights(state, field, value, found):
    with pytest.raises(WeightsError, match=rf"{field}={value}, but the weights are those of {field}={found}"):
        fastdiff.models.load(state, config={**CONFIG, field: value})


def test_heads_that_cannot_be(state):
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads"):
        fastdiff.models.load(state, config={"num_heads": 5})


def test_what_the_weights_do_not_tell(state):
    with pytest.raises(ValueError, match=r"config must give \['num_heads'\]"):
        fastdiff.models.load(state)
    with pytest.raises(ValueError, match="unknown field of a dit config 'num_head'; did you mean 'num_heads'"):
        fastdiff.models.load(state, config={"num_head": 4})


def test_layouts(state):
    assert {"dit", "diffusers"} <= fastdiff.models.layouts().keys()
    with pytest.raises(ValueError, match="unknown layout 'dits'; did you mean 'dit'"):
        fastdiff.models.load(state, layout="dits")
    with pytest.raises(WeightsError, match=r"is no checkpoint that is known\. Known are .*dit.* Its keys begin with a"):
        fastdiff.models.load({"a": torch.zeros(1)})


def test_the_wrong_layout_is_told_the_right_one(state):
    with pytest.raises(WeightsError, match="nearest layout is dit"):
        fastdiff.models.load(state, layout="diffusers")


@pytest.mark.parametrize("content", [{}, {"step": 3}, {"model": 1}, {"a": torch.zeros(1), "b": 2}])
def test_no_state_dict(content):
    with pytest.raises(WeightsError, match="tensors by name"):
        fastdiff.models.load(content)


# ---- damaged and hostile files --------------------------------------------------------------------------------------


class Bomb:
    """Unpickling this by Python's own reader would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(tmp_path, state, zipped):
    torch.save({"model": state, "hook": Bomb(tmp_path / "ran")}, tmp_path / "model.pt",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(WeightsError, match=r"model\.pt .*no code from a checkpoint is run"):
        fastdiff.models.load(tmp_path / "model.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=r"plain\.pkl"):
        fastdiff.models.load(tmp_path / "plain.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 500, 0.1, 0.5, 0.9, -1])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_truncated(tmp_path, state, form, kept):
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=path.name):
        fastdiff.models.load(path, config=HEADS)


def test_other_files(tmp_path):
    (tmp_path / "page.html").write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match=r"page\.html is neither safetensors nor a file of torch\.save"):
        fastdiff.models.load(tmp_path / "page.html")
    with pytest.raises(WeightsError, match=r"cannot read .*none\.safetensors: No such file"):
        fastdiff.models.load(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"cannot read .*config\.json"):
        fastdiff.models.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="must hold an object"):
        fastdiff.models.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    with pytest.raises(WeightsError, match="has no safetensors"):
        fastdiff.models.load(tmp_path)


def test_broken_shards(tmp_path):
    diffusers_model().save_pretrained(tmp_path, max_shard_size="200KB")
    index = next(tmp_path.glob("*.index.json"))
    about = json.loads(index.read_text())
    key, shard = next(iter(about["weight_map"].items()))

    def broken(weight_map):
        index.write_text(json.dumps({**about, "weight_map": weight_map}))
        return pytest.raises(WeightsError)

    with broken({**about["weight_map"], key: "../" + shard}) as caught:
        fastdiff.models.load(tmp_path)
    assert "no file beside it" in str(caught.value)
    with broken({k: v for k, v in about["weight_map"].items() if k != key}) as caught:
        fastdiff.models.load(tmp_path)
    assert f"disagree on {key}" in str(caught.value)
    with broken([]) as caught:
        fastdiff.models.load(tmp_path)
    assert "no weight_map" in str(caught.value)
    with broken(about["weight_map"]) as caught:
        (tmp_path / shard).unlink()
        fastdiff.models.load(tmp_path)
    assert "cannot read" in str(caught.value)


def test_a_folder_of_another_class(tmp_path, state):
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "PixArtTransformer2DModel"}')
    for layout in (None, "dit", "diffusers"):
        with pytest.raises(WeightsError, match=r"holds a PixArtTransformer2DModel of diffusers; known are .*DiTTransf"):
            fastdiff.models.load(tmp_path, layout=layout)
