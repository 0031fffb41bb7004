"""What the network of a diffusers pipeline is called with beside the state and the time: prompts, classes, masks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import WeightsError, expect
from fastdiff.profiling.subject import Conditions

_TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
_OTHERWISE = "write an entry point module:function instead"
# Arguments of U-Nets' and transformers' calls that hold others, by what is in them.
_ADDED = ("text_embeds", "time_ids")
_NETWORKS = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2D",
    "Transformer2DModel",
    "PixArt",
    "SD3Transformer2D",
)
# Of a network's config: what further inputs it has, and with which values they are made of the text here.
_TAKEN = {"time_cond_proj_dim": (), "class_embed_type": (), "encoder_hid_dim_type": ("text_proj",),
          "addition_embed_type": ("text_time", "text")}  # fmt: skip


class Called(nn.Module):
    """A network of diffusers with fastdiff's call: network(x, t, **cond) -> tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.is_pixart = "PixArt" in type(network).__name__

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        added = {name: conditions.pop(name) for name in _ADDED if name in conditions}
        if self.is_pixart:
            added = self._sizes(x)
        if added:
            conditions["added_cond_kwargs"] = added
        return self.network(x, timestep=t, **conditions, return_dict=False)[0]

    def _sizes(self, x: Tensor) -> dict[str, Tensor | None]:
        """PixArt's resolution in pixels and aspect ratio, of the model that takes them."""
        if not self.network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = x.shape[2:]
        sizes = x.new_tensor([[8 * height, 8 * width]]), x.new_tensor([[height / width]])
        resolution, ratio = (size.expand(len(x), -1) for size in sizes)
        return {"resolution": resolution, "aspect_ratio": ratio}


def expect_usable(pipeline: Any, kind: str, network: Any, used: Sequence[Any]) -> None:
    """Raise ValueError for a pipeline whose network needs more than the state, the time and a text or a class, or which
    has a part that would be left out without a word. used: its autoencoder."""
    known = type(network).__name__.startswith(_NETWORKS)
    expect(known, f"fastdiff knows no conditions of a {kind}; {_OTHERWISE}")
    left_out = [
        name
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module) and part is not network and not any(part is each for each in used)
        and name not in (*_TEXT, "safety_checker", "image_encoder")
    ]  # fmt: skip
    expect(not left_out, f"fastdiff would leave out {', '.join(left_out)} of this {kind}; {_OTHERWISE}")
    config = network.config
    given, returned = config.in_channels, config.out_channels or config.in_channels
    channels = f"takes {given} channels and returns {returned}"
    expect(returned in (given, 2 * given), f"the network of this {kind} {channels}: more than the state; {_OTHERWISE}")
    for name, taken in _TAKEN.items():
        value = config.get(name)
        unknown = f"has {name}={value!r}, whose input fastdiff does not know"
        expect(value is None or value in taken, f"the network of this {kind} {unknown}; {_OTHERWISE}")


def conditions_of(pipeline: Any, kind: str, folder: Path, index: Mapping[str, Any], prompts: Sequence[str]) -> Any:
    """The `Conditions` of a subject, None for a network without. Raises ValueError for a pipeline of another kind."""
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    name, config = type(network).__name__, network.config
    if name.startswith(("SD3", "PixArt")) or config.get("addition_embed_type") == "text_time":
        return _of_prompts(_encoded(pipeline, name, folder, index, prompts))
    if name == "UNet2DConditionModel" and hasattr(pipeline, "encode_prompt"):
        return _of_prompts(_encoded_by(pipeline, kind, prompts))
    classes = config.get("num_embeds_ada_norm") if "DiT" in kind else config.get("num_class_embeds")
    if ("DiT" in kind or name == "UNet2DModel") and classes:
        return _of_classes(network, classes, guided="DiT" in kind)
    expect(name == "UNet2DModel", f"fastdiff knows no conditions of a {kind}; {_OTHERWISE}")
    return None


def _of_classes(network: Any, classes: int, guided: bool) -> Conditions:
    """guided: whether a further class stands for none."""

    def given(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        chosen = torch.arange(first, first + count, device=network.device) * 377 % classes  # no factor with 1000
        return {"class_labels": chosen}, {"class_labels": torch.full_like(chosen, classes)} if guided else None

    return given


def _of_prompts(encoded: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> Conditions:
    """Sample k has the prompt k, again from the first after the last. encoded: each with a row, and no prompt."""

    def rows(each: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        return {name: torch.cat([row[name] for row in each]) for name in each[0]}

    def given(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
        chosen = [encoded[k % len(encoded)] for k in range(first, first + count)]
        return rows([cond for cond, _ in chosen]), rows([uncond for _, uncond in chosen])

    return given


def _encoded(
    pipeline: Any, network: str, folder: Path, index: Mapping[str, Any], prompts: Sequence[str]
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """By `fastdiff.models.load(folder, part="text")`, with the pipeline's own encoders."""
    from fastdiff.integrations.transformers.conditions import TextConditions, expect_known

    encoders = {}
    for part in _TEXT:
        encoder = getattr(pipeline, part, None)
        if encoder is not None:
            try:
                expect_known(network, part, type(encoder).__name__)
            except WeightsError as error:
                raise ValueError(f"{error}; {_OTHERWISE}") from error
            encoders[part] = getattr(pipeline, part.replace("text_encoder", "tokenizer")), encoder
    encode = TextConditions(folder, index, encoders).eval()

    def renamed(prompt: str | None) -> dict[str, Tensor]:
        return {"encoder_hidden_states" if name == "context" else name: each for name, each in encode(prompt).items()}

    none = renamed(None)
    return [(renamed(prompt), none) for prompt in prompts]


@torch.no_grad()
def _encoded_by(pipeline: Any, kind: str, prompts: Sequence[str]) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """By the pipeline's own method, where it gives two tensors: of the prompt and of none."""
    named = {"device": pipeline.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True,
             "negative_prompt": ""}  # fmt: skip
    taken = inspect.signature(pipeline.encode_prompt).parameters
    pairs = []
    for prompt in prompts:
        found = pipeline.encode_prompt(prompt, **{name: value for name, value in named.items() if name in taken})
        alike = isinstance(found, tuple) and len(found) == 2 and all(isinstance(each, Tensor) for each in found)
        expect(alike and found[0].shape == found[1].shape, f"fastdiff does not know what the text of a {kind} is made "
               f"into; {_OTHERWISE}")  # fmt: skip
        pairs.append(({"encoder_hidden_states": found[0]}, {"encoder_hidden_states": found[1]}))
    return pairs
