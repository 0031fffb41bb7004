"""LoRA (Hu et al. 2022) with peft: a style is learned from five pictures, as small matrices beside the weights.

Five samples of the model are printed in blue ink, and the model is trained on them with their prompts. Only the
matrices A and B are trained, h = W x + (alpha / r) B A x (Section 4.1). They are saved in lora/, and merged into the
weights. Needs peft.
"""

import argparse

import peft
import torch

import fastdiff
from fastdiff import pictures
from fastdiff.train.losses import denoising_loss
from fastdiff.train.process import Process

PROMPTS = ["red heart", "grinning face", "dog face", "soccer ball", "green book"]
OTHERS = ["cat face", "blue heart", "red apple", "automobile", "flag japan"]


def printed(x):
    """Pictures (B, 3, H, W) in [-1, 1] in blue ink: what was dark is blue, what was white is white."""
    grey = (x * torch.tensor([0.3, 0.59, 0.11])[:, None, None]).sum(1, keepdim=True)
    ink = torch.tensor([-0.85, -0.6, 0.2])[:, None, None]
    return torch.lerp(ink, torch.ones_like(ink), (grey + 1) / 2)


def add_lora(model, rank):
    """Put matrices of this rank beside the weights of the U-Net's transformers and convolutions."""
    layers = ["to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "conv1", "conv2", "conv_out"]
    model.unet = peft.get_peft_model(model.unet, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))


def learn(model, z, prompts, steps, *, batch=8, lr=2e-3):
    """Train what is trainable on latents z, (N, C, H, W), with a prompt each, and with none for guidance."""
    process, generator = Process.of(model.info.schedule, model.info.prediction), torch.Generator().manual_seed(0)
    cond = model.info.condition([*prompts, None], len(prompts) + 1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        chosen = torch.randint(len(z), (batch,), generator=generator)
        named = torch.where(torch.rand(batch, generator=generator) < 0.2, len(prompts), chosen)
        given = {name: value[named] for name, value in cond.items()}
        loss = denoising_loss(model, process, z[chosen], generator, **given).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fixed_loss(model, z, prompts):
    """The loss of latents with their prompts, at the same noises and times in every call."""
    process, generator = Process.of(model.info.schedule, model.info.prediction), torch.Generator().manual_seed(1)
    cond = model.info.condition(8 * prompts, 8 * len(prompts))
    with torch.no_grad():
        return denoising_loss(model, process, z.repeat(8, 1, 1, 1), generator, **cond).mean().item()


def sample(model, prompts):
    """A picture of each prompt."""
    cond, uncond = model.info.condition(prompts, len(prompts)), model.info.condition(None, len(prompts))
    shape = (len(prompts), *model.info.shape)
    return model.decode(fastdiff.sample(model, shape, steps=20, guidance=3.0, cond=cond, uncond=uncond, seed=0))


def main():
    """Rows of lora.png: given, other prompts before, other prompts after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=8, help="of the matrices (default: 8)")
    parser.add_argument("--steps", type=int, default=250, help="default: 250")
    options = parser.parse_args()
    model = fastdiff.load("emoji-ldm-64")
    given, before = printed(sample(model, PROMPTS)), sample(model, OTHERS)
    with torch.no_grad():
        z = model.encode(given)
    add_lora(model, options.rank)
    loss = fixed_loss(model, z, PROMPTS)
    learn(model, z, PROMPTS, options.steps)
    print(f"loss of the pictures: {loss:.3f} before, {fixed_loss(model, z, PROMPTS):.3f} after")
    model.unet.save_pretrained("lora")
    after = sample(model, OTHERS)
    model.unet = model.unet.merge_and_unload()
    fastdiff.optimize(model)
    difference = (sample(model, OTHERS) - after).abs().max().item()
    print(f"merged and optimized, the pictures differ by at most {difference:.0e}")
    pictures.save_png("lora.png", pictures.grid(torch.cat([given, before, after]), len(given)), zoom=2)


if __name__ == "__main__":
    main()
