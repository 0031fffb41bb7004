"""Small networks of other data than pictures for the tests that all families share."""

import torch

from fastdiff.models.music_transformer import MusicTransformer, MusicTransformerConfig
from fastdiff.models.temporal_unet import TemporalUnet, TemporalUnetConfig
from fastdiff.models.timegrad import TimeGrad, TimeGradConfig


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


T = torch.tensor([1.0, 77.0, 499.0])
VALUES, PAST = normal(3, 1, 6), normal(3, 1, 10, seed=2)
PLAN, RETURNS = normal(3, 8, 5), normal(3, 1, seed=2)
TEMPORAL = dict(horizon=8, transition_dim=5, cond_dim=4, dim=16, dim_mults=(1, 2))
MELODY = normal(3, 7, 5)
OTHER_DATA = {
    "timegrad": (
        lambda: TimeGrad(TimeGradConfig(target_dim=6, cond_length=10, residual_layers=3)),
        dict(x=VALUES, t=T, cond=PAST)),
    "temporal": (
        lambda: TemporalUnet(TemporalUnetConfig(**TEMPORAL, returns_condition=True)),
        dict(x=PLAN, t=T, returns=RETURNS, keep=torch.tensor([True, False, True]))),
    "temporal-plain": (
        lambda: TemporalUnet(TemporalUnetConfig(**{**TEMPORAL, "dim_mults": (1, 2, 3)}, kernel_size=3)),
        dict(x=PLAN, t=T)),
    "music": (
        lambda: MusicTransformer(MusicTransformerConfig(5, num_layers=2, num_heads=4, num_mlp_layers=1, mlp_dims=24)),
        dict(x=MELODY, t=T / 10_000)),
}  # fmt: skip
# A call that is refused: the changes of its arguments, and what the error says.
REFUSED = [
    ("timegrad", {"x": VALUES[..., :5]}, r"x must be \(B, 1, 6\), got \(3, 1, 5\)"),
    ("timegrad", {"t": T[:2]}, r"t must be \(3,\), one step a sample, got \(2,\)"),
    ("timegrad", {"cond": PAST[..., :9]}, r"cond must be \(3, 1, 10\), got \(3, 1, 9\)"),
    ("temporal", {"x": PLAN[:, :7]}, r"x must be \(B, H, 5\) with H divisible by 2, got \(3, 7, 5\)"),
    ("temporal", {"returns": RETURNS[:, 0]}, r"returns must be \(3, 1\), got \(3,\)"),
    ("temporal", {"t": T[:2]}, r"t must be \(3,\), one time a sample"),
    ("temporal-plain", {"returns": RETURNS}, "the model has no returns_condition"),
    ("music", {"x": MELODY[..., :4]}, r"x must be \(B, L, 5\), got \(3, 7, 4\)"),
    ("music", {"t": T[:2]}, r"t must be \(3,\), one noise level a sample, got \(2,\)"),
]
REFUSED_CONFIGS = [
    (lambda: TimeGradConfig(1, 10), "target_dim must be 2 or more, got 1"),
    (lambda: TimeGradConfig(6, 10, dilation_cycle_length=5), r"a dilation of 16 is wider than target_dim \+ 4, 10"),
    (lambda: TemporalUnetConfig(**{**TEMPORAL, "dim_mults": (2, 4)}), r"dim_mults must begin with 1, got \(2, 4\)"),
    (lambda: TemporalUnetConfig(**TEMPORAL, kernel_size=4), "kernel_size must be odd, got 4"),
    (lambda: MusicTransformerConfig(5, num_heads=3), "num_heads must divide 128, got 3"),
]
