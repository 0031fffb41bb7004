"""ControlNet (Zhang et al. 2023): a U-Net is steered by pictures of edges, depths, poses, through a trainable copy of
its way down that ends in zero convolutions."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.ldm import LDMConfig, LDMEmbeddings, LDMUNet
from fastdiff.models.parts.attention import Context
from fastdiff.models.parts.backbone import Backbone, HalfBackbone
from fastdiff.models.parts.blocks import conv_nd, zero_init
from fastdiff.models.parts.control import Control, guess_scales, summed

HINT_CHANNELS = (16, 32, 96, 256)


class HintEncoder(nn.Sequential):
    """The picture at the resolution of the latents: (B, hint_channels, s H, s W) -> (B, out_channels, H, W), where s is
    2 to the number of `channels` after the first (Zhang et al. 2023, Section 3.3, Eq. 4)."""

    def __init__(self, hint_channels: int, channels: Sequence[int], out_channels: int, *, dims: int = 2) -> None:
        layers: list[nn.Module] = [conv_nd(dims, hint_channels, channels[0], 3, padding=1), nn.SiLU()]
        for width, wider in itertools.pairwise(channels):
            layers += [conv_nd(dims, width, width, 3, padding=1), nn.SiLU()]
            layers += [conv_nd(dims, width, wider, 3, padding=1, stride=2), nn.SiLU()]
        super().__init__(*layers, zero_init(conv_nd(dims, channels[-1], out_channels, 3, padding=1)))
        self.hint_channels, self.factor = hint_channels, 2 ** (len(channels) - 1)

    def check(self, x: Tensor, hint: Tensor) -> None:
        """Raise ValueError unless the hint is the picture of x."""
        size = [self.factor * pixels for pixels in x.shape[2:]]
        expect(
            hint.ndim == x.ndim
            and len(hint) in (1, len(x))
            and hint.shape[1] == self.hint_channels
            and [*hint.shape[2:]] == size,
            f"hint must be {(len(x), self.hint_channels, *size)}, {self.factor} times x's size, got "
            f"{tuple(hint.shape)}",
        )


class ControlBackbone(HalfBackbone):
    """The way down and the middle of a U-Net, the picture added to the first convolution's result, and a zero
    convolution for each skip and the middle (Zhang et al. 2023, Section 3.2, Fig. 3).

    hint_channels: of the picture. hint_widths: see HintEncoder. pools: the residuals are their means over the pixels,
    as of ControlNets that take a picture's colours and not its places. parts: as of HalfBackbone.
    """

    def __init__(
        self,
        *,
        hint_channels: int,
        hint_widths: Sequence[int] = HINT_CHANNELS,
        pools: bool = False,
        dims: int = 2,
        **parts: Any,
    ) -> None:
        super().__init__(dims=dims, **parts)
        self.hint = HintEncoder(hint_channels, hint_widths, self.skip_channels[0], dims=dims)
        self.zero_convs = nn.ModuleList(zero_init(conv_nd(dims, width, width, 1)) for width in self.skip_channels)
        self.zero_middle = zero_init(conv_nd(dims, self.width, self.width, 1))
        self.pools = pools

    def run(self, x: Tensor, embedding: Tensor, context: Context | None, hint: Tensor) -> Control:
        """What is added to the U-Net, given the embedding of the times after the activation."""
        self.hint.check(x, hint)
        h, skips = self.run_down(x, embedding, context, added=self.hint(hint.to(x.dtype)))
        outs = [conv(skip) for conv, skip in zip(self.zero_convs, skips)]
        middle = self.zero_middle(h)
        if self.pools:
            places = tuple(range(2, x.ndim))
            outs, middle = [out.mean(places, keepdim=True) for out in outs], middle.mean(places, keepdim=True)
        return Control(outs, middle)


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(LDMConfig):
    """The arguments of cldm's `ControlNet`: those of the U-Net that it controls, and hint_channels. out_channels and
    what belongs to the way up and to codes changes nothing here. cldm's has no classes and always these hint_widths,
    see `HintEncoder`."""

    hint_channels: int = 3
    hint_widths: tuple[int, ...] = HINT_CHANNELS


class ControlNet(LDMEmbeddings, ControlBackbone):
    """`net(x, t, context, y, hint=picture)` -> Control, for the U-Net of Stable Diffusion 1 and 2 (an `LDMUNet`).

    x: (B, in_channels, H, W), as the U-Net's. t: (B,) training times. context: (B, S, context_dim). y: as the U-Net's,
    for a config with num_classes. hint: (B, hint_channels, 8 H, 8 W), or smaller by the hint_widths, in the range that
    it was trained with ([0, 1] for the published ones). Raises ValueError where these do not fit.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        parts = config.parts()
        del parts["up"]
        super().__init__(
            hint_channels=config.hint_channels,
            hint_widths=config.hint_widths,
            in_channels=config.in_channels,
            stem_channels=config.model_channels,
            **parts,
        )
        self.add_embeddings(config)

    @classmethod
    def copy_of(
        cls, unet: LDMUNet, *, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_CHANNELS
    ) -> ControlNet:
        """A network to train: the U-Net's way down with its weights, which adds nothing yet."""
        given = {field.name: getattr(unet.config, field.name) for field in dataclasses.fields(LDMConfig)}
        net = cls(ControlNetConfig(**given, hint_channels=hint_channels, hint_widths=tuple(hint_widths)))
        own = net.state_dict().keys()
        net.load_state_dict({name: v for name, v in unet.state_dict().items() if name in own}, strict=False)
        some = next(unet.parameters())
        return net.to(some.device, some.dtype)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None, *, hint: Tensor
    ) -> Control:
        return self.run(x, self.embed(x, t, context, y), context, hint)


class ControlledUNet(nn.Module):
    """A U-Net with ControlNets: `model(x, t, ..., edges=picture, depth=other)`, whose hints have names of your own.

        model = ControlledUNet(unet, {"edges": canny, "depth": depth}, scales={"depth": 0.5})
        cond = {"context": text, "edges": edges, "depth": depths}
        x = fastdiff.sample(model, (4, 4, 64, 64), cond=cond, uncond={**cond, "context": nothing}, guidance=7.5, ...)

    unet: one of fastdiff's U-Nets, or a module around one that passes `control` on. controls: ControlNets by the names
    of their hints; several add up (Zhang et al. 2023, Section 3.4). scales: of a control, one number or one for each
    residual, the middle's last; 1 if not given. guess: `guess_scales` on top, for prompts that say nothing; leave the
    hints out of uncond then. only_middle: nothing is added to the skips.

    The other arguments of a call go to the U-Net and to the ControlNets alike. A hint that is left out or None leaves
    its control out. Raises TypeError for networks of other kinds, ValueError for a ControlNet of another U-Net, for a
    name that the U-Net's call has, and for hints that do not fit.
    """

    def __init__(
        self,
        unet: nn.Module,
        controls: Mapping[str, ControlBackbone],
        *,
        scales: Mapping[str, float | Sequence[float]] | None = None,
        guess: bool = False,
        only_middle: bool = False,
    ) -> None:
        super().__init__()
        backbone = next((part for part in unet.modules() if isinstance(part, Backbone)), None)
        if backbone is None:
            raise TypeError(f"unet must be one of fastdiff's U-Nets, got {type(unet).__name__}")
        taken = inspect.signature(unet.forward).parameters
        for name, net in controls.items():
            if not isinstance(net, ControlBackbone):
                raise TypeError(f"controls[{name!r}] must be a ControlNet, got {type(net).__name__}")
            expect(name not in taken, f"controls has the name {name!r}, which is an argument of the U-Net's call")
            expect(
                net.skip_channels == backbone.skip_channels,
                f"controls[{name!r}] is for a U-Net whose skips have {net.skip_channels} channels, not "
                f"{backbone.skip_channels}",
            )
        self.scales = dict(scales or {})
        for name in self.scales:
            expect(name in controls, f"scales has {name!r}, controls only {', '.join(controls)}")
        self.unet, self.controls = unet, nn.ModuleDict(controls)
        self.guess, self.only_middle = guess, only_middle
        self.info, self.config = getattr(unet, "info", None), getattr(unet, "config", None)

    def forward(self, x: Tensor, t: Tensor, *arguments: Any, control: Control | None = None, **options: Any) -> Tensor:
        given = [] if control is None else [control]
        hints = {name: options.pop(name, None) for name in self.controls}
        shared = {name: value for name, value in options.items() if name != "reuse"}
        for name, net in self.controls.items():
            if hints[name] is not None:
                given.append(self._of(name, net(x, t, *arguments, hint=hints[name], **shared)))
        return self.unet(x, t, *arguments, control=summed(given) if given else None, **options)

    def _of(self, name: str, control: Control) -> Control:
        """A network's control, scaled."""
        if name in self.scales:
            control = control.scaled(self.scales[name])
        net = self.controls[name]
        assert isinstance(net, ControlBackbone)
        if self.guess and not net.pools:  # as diffusers
            control = control.scaled(guess_scales(len(net.skip_channels) + 1))
        return control.only_middle() if self.only_middle else control
