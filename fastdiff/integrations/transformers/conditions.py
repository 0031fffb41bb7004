"""From a pipeline's folder to a function from prompts to conditions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import WeightsError, expect
from fastdiff.integrations.transformers.encoders import library

# Tokens of T5, diffusers' max_sequence_length.
_PIXART_LENGTH, _SIGMA_LENGTH, _SD3_LENGTH, _FLUX_LENGTH = 120, 300, 256, 512
# The encoders that networks are known to have, by the beginning of the network's class.
_KNOWN = {
    "UNet": {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    "PixArt": {"text_encoder": "T5EncoderModel"},
    "SD3": {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    "Flux": {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
}
_VAE = 8  # pixels a latent pixel


class TextConditions(nn.Module):
    """`encode(prompt)` -> what a pipeline's network takes of it, a dict for `fastdiff.sample(..., cond=...)`.

    prompt: a string, a list of them, or None for no prompt, as diffusers treats a missing negative one (zeros where the
    folder says force_zeros_for_empty_prompt). Longer prompts than the encoders take are cut, with a warning.

    Stable Diffusion 1 and 2: context. XL: context, text_embeds and time_ids. PixArt: encoder_hidden_states and
    encoder_attention_mask. Stable Diffusion 3 and Flux: encoder_hidden_states and pooled_projections; of 3, zeros for a
    T5 that the folder lacks. Those of transformers are the arguments of diffusers' classes.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any], encoders: Mapping[str, tuple[Any, Any]]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: encoder for name, (_, encoder) in encoders.items()})
        self.tokenizers = {name: tokenizer for name, (tokenizer, _) in encoders.items()}
        self.zeros = bool(index.get("force_zeros_for_empty_prompt", False))
        self.index = dict(index)
        network = next(name for name in ("unet", "transformer") if _class(index, name) is not None)
        self.network = str(_class(index, network))
        path = folder / network / "config.json"
        self.config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @torch.no_grad()
    def forward(self, prompt: str | Sequence[str] | None, **options: Any) -> dict[str, Tensor]:
        """options: of XL size, crop and target, (height, width) each, and aesthetic_score (refiner); of what has a T5
        max_length, its tokens. Raises TypeError for others, and for a prompt of another type.
        """
        given = prompt if prompt is None or isinstance(prompt, str) else list(prompt)
        if not (given is None or isinstance(given, str) or all(isinstance(text, str) for text in given)):
            raise TypeError(f"prompt must be a string, a list of strings or None, got {prompt!r}")
        texts = [given or ""] if given is None or isinstance(given, str) else given
        expect(len(texts) > 0, "prompt must not be an empty list")
        if "PixArt" in self.network:
            return self._pixart(texts, **options)
        if self.network.startswith("SD3"):
            return self._sd3(texts, **options)
        if self.network.startswith("Flux"):
            return self._flux(texts, **options)
        if "text_encoder_2" in self.encoders:
            return self._xl(texts, none=given is None, **options)
        return {"context": self._run("text_encoder", texts, masked=None, **options)[0]}

    def _xl(
        self,
        texts: list[str],
        *,
        none: bool,
        size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target: tuple[int, int] | None = None,
        aesthetic_score: float | None = None,
    ) -> dict[str, Tensor]:
        context, pooled = self._clip(texts)
        if none and self.zeros:
            context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
        pixels = _VAE * int(self.config.get("sample_size", 128))
        size = size or (pixels, pixels)
        numbers: tuple[float, ...] = (*size, *crop, *(target or size))
        if self.index.get("requires_aesthetics_score", False):  # the refiner's
            numbers = (*size, *crop, (2.5 if none else 6.0) if aesthetic_score is None else aesthetic_score)
        else:
            expect(aesthetic_score is None, "aesthetic_score was given, but the network takes none")
        time_ids = torch.tensor([numbers], dtype=context.dtype, device=context.device).repeat(len(texts), 1)
        return {"context": context, "text_embeds": pooled, "time_ids": time_ids}

    def _pixart(self, texts: list[str], *, max_length: int | None = None) -> dict[str, Tensor]:
        length = max_length or (_SIGMA_LENGTH if "Sigma" in str(self.index.get("_class_name")) else _PIXART_LENGTH)
        texts = [text.lower().strip() for text in texts]
        hidden, mask = self._run("text_encoder", texts, length=length, masked=True)
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}

    def _sd3(self, texts: list[str], *, max_length: int = _SD3_LENGTH) -> dict[str, Tensor]:
        clip, pooled = self._clip(texts, both_pooled=True)
        if "text_encoder_3" in self.encoders:
            long, _ = self._run("text_encoder_3", texts, length=max_length, masked=False)
        else:
            width = int(self.config.get("joint_attention_dim", 4096))
            long = clip.new_zeros(len(texts), max_length, width)
        clip = F.pad(clip, (0, long.shape[-1] - clip.shape[-1]))
        return {"encoder_hidden_states": torch.cat([clip, long], dim=1), "pooled_projections": pooled}

    def _flux(self, texts: list[str], *, max_length: int = _FLUX_LENGTH) -> dict[str, Tensor]:
        ids, _ = self._tokens("text_encoder", texts, None)
        hidden, _ = self._run("text_encoder_2", texts, length=max_length, masked=False)
        return {
            "encoder_hidden_states": hidden,
            "pooled_projections": self.encoders["text_encoder"](ids).pooler_output.to(hidden.dtype),
        }

    def _clip(self, texts: list[str], *, both_pooled: bool = False) -> tuple[Tensor, Tensor]:
        """The layer before the last of the CLIP encoders, side by side, and what they pool."""
        hidden, pooled = [], []
        for name in ("text_encoder", "text_encoder_2"):
            if name in self.encoders:
                ids, _ = self._tokens(name, texts, None)
                out = self.encoders[name](ids, output_hidden_states=True)
                hidden.append(out.hidden_states[-2])
                if both_pooled or name == "text_encoder_2":
                    pooled.append(out[0])
        return torch.cat(hidden, dim=-1), torch.cat(pooled, dim=-1)

    def _run(
        self, name: str, texts: list[str], *, length: int | None = None, masked: bool | None
    ) -> tuple[Tensor, Tensor]:
        """The last layer of one encoder and the mask. masked: whether it sees the mask; None: if its config says so."""
        ids, mask = self._tokens(name, texts, length)
        encoder = self.encoders[name]
        if masked is None:
            masked = bool(getattr(encoder.config, "use_attention_mask", False))
        return encoder(ids, attention_mask=mask if masked else None)[0], mask

    def _tokens(self, name: str, texts: list[str], length: int | None) -> tuple[Tensor, Tensor]:
        """Numbers (B, length) and the mask of those that are no padding, on the encoder's device."""
        tokenizer = self.tokenizers[name]
        length = length or tokenizer.model_max_length
        inputs = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        longest = max(len(ids) for ids in tokenizer(texts)["input_ids"])
        if longest > length:
            warnings.warn(f"a prompt has {longest} tokens, of which {name} sees {length}", stacklevel=5)
        device = next(self.encoders[name].parameters()).device
        return inputs["input_ids"].to(device), inputs["attention_mask"].to(device)


def load_text(folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """`TextConditions` of a pipeline's folder as diffusers saves it; nothing is downloaded.

    Raises ImportError without transformers (the extra `text`), WeightsError for another folder.
    """
    classes = library()
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise WeightsError(
            f"part 'text' needs a pipeline's folder, with model_index.json, text encoders and tokenizers; got {folder}"
        )
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    network = _class(index, "unet") or _class(index, "transformer")
    if network is None:
        raise WeightsError(f"{folder / 'model_index.json'} names neither a unet nor a transformer")
    version = tuple(int(part) for part in classes.__version__.split(".")[:2])
    typed = {"dtype" if version >= (4, 56) else "torch_dtype": dtype or "auto"}
    encoders = {}
    for suffix in ("", "_2", "_3"):
        name = _class(index, f"text_encoder{suffix}")
        if name is None:
            continue
        expect_known(network, f"text_encoder{suffix}", name)
        path, words = folder / f"text_encoder{suffix}", folder / f"tokenizer{suffix}"
        for needed in (path, words):
            if not needed.is_dir():
                raise WeightsError(f"{folder} has no folder {needed.name}, which model_index.json names")
        encoder = getattr(classes, name).from_pretrained(path, local_files_only=True, **typed)
        tokenizer = classes.AutoTokenizer.from_pretrained(words, local_files_only=True)
        encoders[f"text_encoder{suffix}"] = (tokenizer, encoder)
    if not encoders:
        raise WeightsError(f"{folder / 'model_index.json'} names no text encoder")
    return TextConditions(folder, index, encoders).to(device).eval().requires_grad_(False)


def expect_known(network: str, part: str, name: str) -> None:
    """Raise WeightsError unless a network of that class is known to take the text of its part from that encoder."""
    known: dict[str, str] = next((names for start, names in _KNOWN.items() if network.startswith(start)), {})
    if known.get(part) != name:
        raise WeightsError(
            f"how {network} takes the text of {part}, a {name}, is not known; expected {known or 'another network'}"
        )


def _class(index: Mapping[str, Any], name: str) -> str | None:
    """Of a part of a pipeline, None if there is none."""
    library_and_class = index.get(name) or (None, None)
    return library_and_class[1]
