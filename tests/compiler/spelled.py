"""Small models in the spellings of the usual repositories: what the passes must recognise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from conftest import floor
from torch import Tensor, nn


class Norm32(nn.GroupNorm):
    """Group norm in float32, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class EinsumAttention(nn.Module):
    """Heads beside the batch, channels before pixels, and the scale on both factors (guided-diffusion)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm32(4, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(x))
        width = c // self.heads
        q, k, v = qkv.reshape(b * self.heads, 3 * width, -1).split(width, dim=1)
        scale = 1 / math.sqrt(math.sqrt(width))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, -1)
        return (x + self.proj(h)).reshape(b, c, *spatial)


class AdaptiveBlock(nn.Module):
    """Scale and shift of the second norm come from the embedding (guided-diffusion)."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(Norm32(4, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.norm = Norm32(4, out)
        self.rest = nn.Sequential(nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.inner(x)
        out = self.embed(embedding).type(h.dtype)
        while out.dim() < h.dim():
            out = out[..., None]
        scale, shift = torch.chunk(out, 2, dim=1)
        return self.skip(x) + self.rest(self.norm(h) * (1 + scale) + shift)


class GuidedUNet(nn.Module):
    """One level down and up, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        self.down = AdaptiveBlock(16, 32, 32)
        self.attention = EinsumAttention(32, 2)
        self.pool = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.up = nn.Conv2d(32, 32, 3, padding=1)
        self.last = AdaptiveBlock(64, 16, 32)
        self.out = nn.Sequential(Norm32(4, 16), nn.SiLU(), nn.Conv2d(16, 6, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = 8
        frequencies = torch.exp(-math.log(10000) * torch.arange(start=0, end=half, dtype=torch.float32) / half)
        angles = t[:, None].float() * frequencies[None].to(device=t.device)
        embedding = self.time(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        skip = self.attention(self.down(self.head(x), embedding))
        h = self.up(F.interpolate(self.pool(skip), scale_factor=2, mode="nearest"))
        return self.out(self.last(torch.cat([h, skip], dim=1), embedding))

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 3, height, width), torch.arange(batch) * 17


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class ProductAttention(nn.Module):
    """One head, keys on the left of the values (latent-diffusion's autoencoder)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.q(h), self.k(h), self.v(h)
        b, c, height, width = q.shape
        q = q.reshape(b, c, height * width).permute(0, 2, 1)
        weight = torch.bmm(q, k.reshape(b, c, height * width)) * (int(c) ** (-0.5))
        weight = F.softmax(weight, dim=2).permute(0, 2, 1)
        h = torch.bmm(v.reshape(b, c, height * width), weight).reshape(b, c, height, width)
        return x + self.proj(h)


class HeadsAttention(nn.Module):
    """Heads merged into the batch (latent-diffusion, diffusers' older processors): by einsum or by baddbmm."""

    def __init__(self, channels: int, context: int, heads: int, *, baddbmm: bool) -> None:
        super().__init__()
        self.heads, self.baddbmm = heads, baddbmm
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.1))

    def split(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        x = x.reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        return x.reshape(b * self.heads, n, c // self.heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        scale = q.shape[-1] ** -0.5
        if self.baddbmm:
            empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
            weight = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=scale).softmax(dim=-1)
            out = torch.bmm(weight, v)
        else:
            weight = (torch.einsum("b i d, b j d -> b i j", q, k) * scale).softmax(dim=-1)
            out = torch.einsum("b i j, b j d -> b i d", weight, v)
        b, n, c = x.shape
        out = out.reshape(b, self.heads, n, c // self.heads).permute(0, 2, 1, 3).reshape(b, n, c)
        return self.to_out(out)


class GatedFeedForward(nn.Module):
    """GEGLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(x * F.gelu(gate))


class LatentUNet(nn.Module):
    """A spatial transformer between residual blocks (latent-diffusion)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 32, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(4, 32), nn.Conv2d(32, 32, 3, padding=1)
        self.embed = nn.Linear(1, 32)
        self.norm2, self.conv2 = nn.GroupNorm(4, 32), nn.Conv2d(32, 32, 3, padding=1)
        self.pixels = ProductAttention(32)
        self.norm, self.proj_in, self.proj_out = nn.GroupNorm(4, 32), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.attention1 = HeadsAttention(32, 32, 4, baddbmm=False)
        self.attention2 = HeadsAttention(32, 24, 4, baddbmm=True)
        self.ff = GatedFeedForward(32)
        self.out = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        x = self.head(x)
        h = self.conv1(swish(self.norm1(x)))
        h = h + self.embed(swish(t[:, None].float()))[:, :, None, None]
        x = self.pixels(x + self.conv2(F.dropout(swish(self.norm2(h)), 0.1, self.training)))
        b, c, height, width = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, height * width, c).contiguous()
        normed = self.norms[0](h)
        h = self.attention1(normed, normed) + h
        h = self.attention2(self.norms[1](h), context) + h
        h = self.ff(self.norms[2](h)) + h
        h = h.reshape(b, height, width, c).permute(0, 3, 1, 2).contiguous()
        return self.out(self.proj_out(h) + x)

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 4, height, width), torch.linspace(-2, 2, batch), torch.randn(batch, 7, 24)


class LargeBlock(nn.Module):
    """A residual block and a transformer block (diffusers'), of sizes for which the kernels are made."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, channels, 1)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, 2 * channels, bias=False) for _ in range(3))
        self.to_out = nn.Linear(2 * channels, channels)
        self.ff = GatedFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.skip(x) + self.conv(F.silu(self.norm(x)))
        b, c, height, width = x.shape
        h = x.permute(0, 2, 3, 1).reshape(b, height * width, c)
        normed = self.norm1(h)
        q, k, v = (layer(normed).view(b, -1, 4, c // 2).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        h = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, 2 * c)) + h
        h = self.ff(self.norm2(h)) + h
        return h.reshape(b, height, width, c).permute(0, 3, 1, 2)

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 64, height, width),)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TokenBlock(nn.Module):
    """adaLN-Zero around attention and an MLP (facebookresearch/DiT with timm's attention)."""

    def __init__(self, channels: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1 = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(approximate="tanh"), nn.Linear(4 * channels, channels)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            q = q * (c // self.heads) ** -0.5
            x = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attend(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class TokenModel(nn.Module):
    """Patches, two blocks, the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, 32, 2, stride=2)
        self.embed = nn.Linear(1, 32)
        self.blocks = nn.ModuleList(TokenBlock(32, 2, fused=fused) for fused in (True, False))
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        c = self.embed(t[:, None])
        for block in self.blocks:
            h = block(h, c)
        return self.out(h)

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 4, height, width), torch.linspace(0, 1, batch)


def random_model(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """In eval mode, with weights of which none is zero or one."""
    torch.manual_seed(seed)
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def reference(model, inputs):
    """What an optimized model's own forward gives."""
    with torch.no_grad():
        return model._call_impl(*inputs)


def close(a, b):
    """To rounding of both, which is that of the largest numbers: of sums of up to 64 x 9 terms, in layers."""
    rounding = 2 * floor(b, torch.float32, terms=576, more=3)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 + rounding)
