"""A U-Net of pictures with layers over the frames between its layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import embedding_dtype, timestep_embedding
from fastdiff.models.parts.temporal import per_frame, to_frames, to_video


class VideoBackbone(Backbone):
    """`Backbone` whose frames are samples, (B F, C, H, W), from the first convolution to the last.

    Residuals of `control` and the features that `reuse` keeps are of frames, too.
    """

    time_embedding: nn.Module
    cond_proj: nn.Module | None

    def stem(self, x: Tensor) -> Tensor:
        return self.conv_in(to_frames(x))

    def run_video(self, x: Tensor, embedding: Tensor, context: Tensor, **options: Any) -> Tensor:
        """(B, C, F, H, W) -> (B, out_channels, F, H, W). embedding: after its activation, and context: one a video."""
        frames = x.shape[2]
        return to_video(self.run(x, embedding, per_frame(context, frames), **options), frames)

    def embed_times(self, x: Tensor, t: Tensor, width: int, timestep_cond: Tensor | None) -> Tensor:
        """(B, embedding) of the times, with what cond_proj makes of timestep_cond."""
        features = timestep_embedding(t.to(embedding_dtype(x)), width).to(x.dtype)
        if self.cond_proj is not None and timestep_cond is not None:
            features = features + self.cond_proj(timestep_cond)
        return self.time_embedding(features)

    def check_video(self, x: Tensor, t: Tensor, context: Tensor, channels: int, context_channels: int) -> None:
        """Raise ValueError unless x is a video, with a time and a context for each."""
        expect(x.ndim == 5 and x.shape[1] == channels, f"x must be (B, {channels}, F, H, W), got {tuple(x.shape)}")
        expect(t.shape == x.shape[:1], f"t must be ({len(x)},), one time a sample, got {tuple(t.shape)}")
        expect(
            context.ndim == 3 and context.shape[::2] == (len(x), context_channels),
            f"context must be ({len(x)}, S, {context_channels}), got {tuple(context.shape)}",
        )
