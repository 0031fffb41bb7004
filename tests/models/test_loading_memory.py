"""Loading a file of several hundred MB: peak memory of a process of its own, which also runs the model once."""

import subprocess
import sys

import pytest
import torch
from original_names import layout_of, state_dict
from safetensors.torch import save_file

# Prints what loading, and then a call of the model, added to the largest resident set, in bytes. VmHWM, since the
# figure of getrusage is inherited by a child process.
PROGRAM = """
import sys, torch, fastdiff
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
a = torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries of matrix products are loaded before
before = peak()
model = fastdiff.models.load(sys.argv[1], config=eval(sys.argv[2]))
loaded = peak()
with torch.no_grad():
    model(torch.randn(1, 4, 16, 16), torch.zeros(1), eval(sys.argv[3]))
print(loaded - before, peak() - before)
"""
WIDTH, DEPTH = 1024, 4
CLASSES, TEXT = "torch.zeros(1, dtype=torch.int64)", "torch.randn(1, 77, 768)"


def block_tensors(names, **others):
    width = WIDTH
    shapes = {
        "modulation": (6 * width, width), "fc1": (4 * width, width), "fc2": (width, 4 * width), "proj": (width, width),
        **others,
    }  # fmt: skip
    for name, key in names.items():
        yield f"{key}.weight", shapes[name]
        yield f"{key}.bias", shapes[name][:1]


def dit_state():
    yield from {
        "pos_embed": (1, 64, WIDTH), "x_embedder.proj.weight": (WIDTH, 4, 2, 2), "x_embedder.proj.bias": (WIDTH,),
        "t_embedder.mlp.0.weight": (WIDTH, 256), "t_embedder.mlp.0.bias": (WIDTH,),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH), "t_embedder.mlp.2.bias": (WIDTH,),
        "y_embedder.embedding_table.weight": (1001, WIDTH),
        "final_layer.linear.weight": (32, WIDTH), "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
        "final_layer.adaLN_modulation.1.bias": (2 * WIDTH,),
    }.items()  # fmt: skip
    names = {"modulation": "adaLN_modulation.1", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "proj": "attn.proj",
             "qkv": "attn.qkv"}  # fmt: skip
    for block in range(DEPTH):
        for key, shape in block_tensors(names, qkv=(3 * WIDTH, WIDTH)):
            yield f"blocks.{block}.{key}", shape


def stable_diffusion_state():
    """The U-Net of Stable Diffusion 1 with 96 instead of 320 channels, and another part that is not loaded."""
    unet = {"in_channels": 4, "out_channels": 4, "model_channels": 96, "attention_resolutions": (4, 2, 1),
            "num_res_blocks": 2, "channel_mult": (1, 2, 4, 4), "num_heads": 8, "use_spatial_transformer": True,
            "context_dim": 768}  # fmt: skip
    for key, value in state_dict(layout_of("the U-Net of LDM"), unet, "model.diffusion_model.").items():
        yield key, value.shape
    yield "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (2000, 768)


def diffusers_folder(folder, shard):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=WIDTH // 16, in_channels=4,
                                                out_channels=8, num_layers=DEPTH, sample_size=16)  # fmt: skip
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder, {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("form", ["safetensors", "pt", "diffusers", "diffusers in shards", "whole.safetensors"])
def test_peak(tmp_path, form):
    if form.startswith("diffusers"):
        path, config = diffusers_folder(tmp_path / "model", "100MB" if "shards" in form else "10GB")
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    else:
        shapes, heads = (stable_diffusion_state(), 8) if form.startswith("whole") else (dit_state(), 16)
        state = {key: torch.full(shape, 0.01) for key, shape in shapes}
        path, config = tmp_path / f"model.{form}", {"num_heads": heads}
        (torch.save if form == "pt" else save_file)(state, path)
        size = path.stat().st_size
        del state
    assert size > 300e6
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), repr(config), TEXT if form.startswith("whole") else CLASSES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded, called = (int(value) / size for value in result.stdout.split())
    print(f"{form}: {size / 1e6:.0f} MB, loading {loaded:.2f}, with a call {called:.2f} of it")
    assert loaded < 1.2
    assert called < 1.2
