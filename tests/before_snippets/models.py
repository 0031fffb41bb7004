"""What docs/models.md leaves to its reader: checkpoints with the authors' keys, a text and pictures to control by."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parents[1] / "models"))
from original_names import layout_of, state_dict

LDM = {"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": (1,),
       "num_res_blocks": 1, "channel_mult": (1,), "num_heads": 8, "use_spatial_transformer": True,
       "transformer_depth": 1, "context_dim": 768, "legacy": False}  # fmt: skip
VAE = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
       "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "embed_dim": 4}  # fmt: skip
ADM = {"image_size": 16, "in_channels": 3, "out_channels": 6, "model_channels": 32, "num_res_blocks": 1,
       "attention_resolutions": (2,), "channel_mult": (1, 2), "num_head_channels": 64}  # fmt: skip

whole = {
    **state_dict(layout_of("the U-Net of LDM"), LDM, "model.diffusion_model."),
    **state_dict(layout_of("the autoencoders"), VAE, "first_stage_model."),
}
whole = {key: torch.zeros_like(value) for key, value in whole.items()}  # numbers, which empty memory may not hold
save_file(whole, "v1-5-pruned.safetensors")
torch.save(state_dict(layout_of("ADM's U-Net"), ADM), "256x256_diffusion.pt")
control = state_dict(layout_of("ControlNet of Stable"), {k: v for k, v in LDM.items() if k != "out_channels"})
for name in ("control_v11p_sd15_canny.pth", "control_v11f1p_sd15_depth.pth"):
    torch.save({f"control_model.{key}": torch.zeros_like(value) for key, value in control.items()}, name)
schedule = "scaled-linear"
noise = torch.randn(1, 4, 4, 4)
text, no_text = torch.randn(1, 7, 768), torch.zeros(1, 7, 768)
edges, depths = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
sr3 = {"inner_channel": 32, "channel_mults": (1, 1, 1, 1), "res_blocks": 1, "attn_res": (16,)}
sr3 = state_dict(layout_of("SR3's U-Net"), sr3, "denoise_fn.")
torch.save({key: torch.zeros_like(value) for key, value in sr3.items()}, "I640000_E37_gen.pth")
enlarged = torch.zeros(2, 3, 128, 128)
sdm = state_dict(layout_of("SDM's U-Net"), {**ADM, "num_classes": 151})
torch.save({key: torch.zeros_like(value) for key, value in sdm.items()}, "ADE20K-SDM-256CH.pt")
labels, noisy = torch.randint(151, (1, 16, 16)), torch.randn(1, 3, 16, 16)
