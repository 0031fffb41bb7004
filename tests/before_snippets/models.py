"""What docs/models.md leaves to its reader: two checkpoints, with the authors' keys."""

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
save_file(whole, "v1-5-pruned.safetensors")
torch.save(state_dict(layout_of("ADM's U-Net"), ADM), "256x256_diffusion.pt")
