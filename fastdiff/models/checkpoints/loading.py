"""`fastdiff.models.load`: from a checkpoint in its authors' layout to a model of fastdiff's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.arguments import described
from fastdiff.errors import WeightsError, expect, one_of, unknown
from fastdiff.models.checkpoints.layout import LAYOUTS, REQUIRED, Checkpoint, Derived, Layout, MissingKey
from fastdiff.models.checkpoints.reading import read
from fastdiff.models.parts.unfilled import unfilled


@torch.inference_mode(False)  # what is loaded inside it could not be differentiated through later
def load(
    source: str | Path | Mapping[str, Any],
    *,
    layout: str | None = None,
    config: Mapping[str, Any] | None = None,
    part: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A model with the weights of a checkpoint, in eval mode and without gradients.

    source: a safetensors file, a file of torch.save (read with weights_only=True: no code in it is run), a folder as
        diffusers saves it (config.json and weights, in one file or several, of a variant too), or a state dict. Of a
        training script's file with several, the average over training is taken ("ema", "ema_model", ...).
    layout: whose code wrote it, a name in fastdiff.models.layouts(); found from the keys if not given.
    config: arguments of the original constructor, by its names. Needed only for what the weights do not tell.
    part: of a file or folder with several models, the one to load ("unet", "vae", ...); the first if not given. "text",
        of a pipeline's folder: its text encoders as a function from prompts to conditions
        (`fastdiff.integrations.transformers.TextConditions`), which needs transformers, the extra `text`.
    dtype: of the floating-point weights; as in the file if not given.

    Weights in the file's dtype are not copied: the file is mapped into memory, and must not be changed or shortened
    while the model is used. Every tensor must have its place and every place its tensor.

    Raises ValueError for an unknown layout, part or field of config, and WeightsError that lists the keys that are
    missing, left over or misshapen, or says what is wrong with the file.
    """
    if part == "text":
        return _text(source, layout, config, device, dtype)
    names = {known.name for known in LAYOUTS}
    if layout is not None:
        one_of("layout", layout, names)
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config must hold arguments by their names, got {described(config)}")
    if part is not None and not isinstance(part, str):
        raise TypeError(f"part must be a name, got {described(part)}")
    whole = read(source, part)
    given = {**whole.config, **(config or {})}
    chosen, checkpoint = _choose(replace(whole, config=given), layout, part)
    try:
        inferred = chosen.infer(checkpoint)
        gap = None
    except MissingKey as error:
        inferred, gap = {}, error
    full = _merge(chosen, checkpoint, inferred, gap)
    model = build(chosen, full)
    sources = {name: chosen.original(name, full) for name in model.state_dict()}
    found = _fitting(chosen, checkpoint, full, model, sources, sizes_known=gap is None)
    tensors = {
        name: _converted(checkpoint, sources[name], found[name], torch.device(device), dtype) for name in sources
    }
    model.load_state_dict(tensors, assign=True)
    unset = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    assert not unset, f"layout {chosen.name} leaves {unset} without values"
    chosen.inform(model, checkpoint)
    return model.eval().requires_grad_(False)


def _text(
    source: Any, layout: str | None, config: Any, device: torch.device | str, dtype: torch.dtype | None
) -> nn.Module:
    """The text encoders of a pipeline's folder."""
    from fastdiff.integrations.transformers import load_text

    expect(layout in (None, "diffusers"), f"part 'text' is of layout diffusers, got {layout!r}")
    expect(not config, "part 'text' takes no config: the folder has it")
    if not isinstance(source, (str, Path)) or not Path(source).is_dir():
        raise WeightsError(f"part 'text' needs the folder of a pipeline, got {described(source)}")
    return load_text(source, device=device, dtype=dtype)


def layouts() -> dict[str, str]:
    """The layouts that `load` knows, and what each holds."""
    found: dict[str, list[str]] = {}
    for known in LAYOUTS:
        found.setdefault(known.name, []).append(known.about)
    return {name: "; ".join(about) for name, about in sorted(found.items())}


def on_meta(layout: str, config: Mapping[str, Any]) -> nn.Module:
    """The model that `load` would give for this config, with shapes and no values, on the meta device.

    layout: a name in layouts(). config: arguments of the original constructor, all that have no default; for diffusers
    with "_class_name". Raises ValueError for an unknown layout, class or field.
    """
    candidates = [known for known in LAYOUTS if known.name == layout]
    if not candidates:
        raise unknown("layout", layout, {known.name for known in LAYOUTS})
    if "_class_name" in config:
        classes = [known.class_name or "" for known in candidates]
        if config["_class_name"] not in classes:
            raise unknown("class of diffusers", config["_class_name"], classes)
        candidates = [known for known in candidates if known.class_name == config["_class_name"]]

    def misfit(known: Layout) -> int:
        """Fields that it does not know, and those that it needs and does not have."""
        needed = {field for field, default in known.fields.items() if default is REQUIRED}
        return len((config.keys() - known.fields.keys()) | (needed - config.keys()))

    chosen = min(candidates, key=misfit)
    return build(chosen, complete(chosen, config))


def build(layout: Layout, config: Mapping[str, Any]) -> nn.Module:
    """The model of a layout, on the meta device: shapes without values. config: all of the layout's fields."""
    with unfilled():
        return layout.build(config).to("meta")


def complete(layout: Layout, config: Mapping[str, Any]) -> dict[str, Any]:
    """config with the layout's defaults. Raises ValueError for unknown fields and for missing ones."""
    for field in config:
        if not field.startswith("_") and field not in layout.fields:
            raise unknown(f"field of a {layout.name} config", field, layout.fields)
    full = {**layout.fields, **{field: _frozen(value) for field, value in config.items() if field in layout.fields}}
    missing = [field for field, value in full.items() if value is REQUIRED]
    expect(not missing, f"the weights do not tell everything of layout {layout.name}; config must give {missing}")
    return full


def _choose(checkpoint: Checkpoint, name: str | None, part: str | None) -> tuple[Layout, Checkpoint]:
    """The layout, and the part of the checkpoint that it takes."""
    candidates = [known for known in LAYOUTS if name in (None, known.name)]
    narrowed: list[tuple[Layout, Checkpoint]] = []
    refused: ValueError | WeightsError | None = None  # of the layout that takes the checkpoint without the part
    for known in candidates:
        try:
            narrowed.append((known, _narrow(known, checkpoint, part)))
        except (ValueError, WeightsError) as error:
            if refused is None and (name is not None or known.detect(_narrow(known, checkpoint, None))):
                refused = error
    found = [(known, taken) for known, taken in narrowed if (known.fits if name else known.detect)(taken)]
    if len(found) == 1:
        return found[0]
    if not found and refused is not None:
        raise refused
    class_name = checkpoint.config.get("_class_name")
    if not found and class_name is not None and class_name not in {known.class_name for known, _ in narrowed}:
        classes = ", ".join(sorted(known.class_name for known in LAYOUTS if known.class_name))
        raise WeightsError(f"{checkpoint.name} holds a {class_name} of diffusers; known are {classes}")
    if not found and name is not None and len(narrowed) == 1:
        return narrowed[0]  # asked for: the comparison of keys says what does not fit
    if not found:
        asked = "" if name is None else f" of layout {name}"
        raise WeightsError(
            f"{checkpoint.name} is no checkpoint{asked} that is known.{_nearest(checkpoint)} Known are "
            f"{', '.join(layouts())}. Its keys begin with {_list(sorted(checkpoint.tensors), 5)}"
        )
    matches = sorted({known.name for known, _ in found})
    raise WeightsError(f"{checkpoint.name} could be of several layouts; layout must be one of {', '.join(matches)}")


def _narrow(layout: Layout, checkpoint: Checkpoint, part: str | None) -> Checkpoint:
    present = [
        name for name, prefix in layout.parts.items() if any(key.startswith(prefix) for key in checkpoint.tensors)
    ]
    if not present:
        before = layout.wrapped_as
        return checkpoint.below(before) if before and _all_begin(checkpoint, before) else checkpoint
    if part is not None and part not in layout.parts:
        raise unknown(f"part of layout {layout.name}", part, layout.parts)
    wanted = part or present[0]
    if wanted not in present:
        raise WeightsError(f"{checkpoint.name} has no part {wanted}, only {', '.join(present)}")
    return checkpoint.below(layout.parts[wanted])


def _all_begin(checkpoint: Checkpoint, prefix: str) -> bool:
    return all(key.startswith(prefix) for key in checkpoint.tensors)


def _nearest(checkpoint: Checkpoint) -> str:
    """A sentence on the layout that shares most of its characteristic keys with the checkpoint, or nothing."""

    def share(layout: Layout) -> float:
        prefixes = ("", *layout.parts.values())
        found = sum(any(prefix + key in checkpoint.tensors for prefix in prefixes) for key in layout.markers)
        return found / len(layout.markers)

    best = max(LAYOUTS, key=share)
    return f" The nearest layout is {best.name}." if share(best) > 0 else ""


def _merge(
    layout: Layout, checkpoint: Checkpoint, inferred: Mapping[str, Any], gap: MissingKey | None
) -> dict[str, Any]:
    """What was given, with what the weights tell; they must agree."""
    given = {field: _frozen(value) for field, value in checkpoint.config.items()}
    inferred = {field: _frozen(value) for field, value in inferred.items()}
    wrong = [
        f"{field}={given[field]!r}, but the weights are those of {field}={value!r}"
        for field, value in inferred.items()
        if field in given and given[field] != value
    ]
    if wrong:
        raise WeightsError(f"config does not match {checkpoint.name}: {'; '.join(wrong)}")
    try:
        return complete(layout, {**inferred, **given})
    except ValueError as error:
        if gap is not None:
            raise WeightsError(f"{gap}, which layout {layout.name} has.{_hint(layout, checkpoint)}") from error
        raise


def _fitting(
    layout: Layout,
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    model: nn.Module,
    sources: Mapping[str, str | Derived],
    *,
    sizes_known: bool,
) -> dict[str, Tensor]:
    """The tensors of the model's state dict. Raises WeightsError that lists every key that is missing, left over or
    misshapen."""
    keys = {name: (where,) if isinstance(where, str) else where.keys for name, where in sources.items()}
    wanted = {key for needed in keys.values() for key in needed}
    prefix = checkpoint.prefix  # keys are told as they are in the file
    problems = {
        "missing": sorted(prefix + key for key in wanted - checkpoint.tensors.keys()),
        "left over": sorted(
            prefix + key for key in checkpoint.tensors.keys() - wanted if not layout.unused(key, config)
        ),
        "misshapen": [],
    }
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items() if sizes_known else ():
        if any(key not in checkpoint.tensors for key in keys[name]):
            continue
        tensor = _take(checkpoint, sources[name])
        if tensor is None or tensor.shape != value.shape:
            given = " and ".join(str(checkpoint.shape(key)) for key in keys[name])
            made_of = " + ".join(prefix + key for key in keys[name]) or name
            problems["misshapen"].append(f"{made_of} is {given}, expected {tuple(value.shape)}")
        else:
            found[name] = tensor
    lines = [f"{what}: {_list(items, 20)}" for what, items in problems.items() if items]
    if lines:
        raise WeightsError(
            f"{checkpoint.name} does not fit the model of layout {layout.name}; {'; '.join(lines)}."
            f"{_hint(layout, checkpoint)}"
        )
    return found


def _take(checkpoint: Checkpoint, where: str | Derived) -> Tensor | None:
    """A tensor for the model, or None if those that it is made of do not go together."""
    if isinstance(where, str):
        return checkpoint.tensors[where]
    inputs = [checkpoint.again(key) for key in where.keys]
    try:
        tensor = where.make(*inputs)
    except (RuntimeError, ValueError, IndexError):  # how torch refuses shapes
        return None
    if len(inputs) == 1 and tensor.untyped_storage().data_ptr() == inputs[0].untyped_storage().data_ptr():
        return where.make(checkpoint.tensors[where.keys[0]])  # a view: of the mapping that is kept anyway
    return tensor


def _converted(
    checkpoint: Checkpoint, where: str | Derived, tensor: Tensor, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """tensor, which came from `where`, on the device and of the type that are wanted."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if tensor.device == device and tensor.dtype == wanted:
        return tensor
    return (checkpoint.again(where) if isinstance(where, str) else tensor).to(device, wanted)


def _hint(layout: Layout, checkpoint: Checkpoint) -> str:
    """Of a checkpoint that does not have what its layout has: whether it looks more like another."""
    nearest = _nearest(checkpoint)
    return "" if f" {layout.name}." in nearest else nearest


def _list(items: Sequence[str], most: int) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _frozen(value: Any) -> Any:
    """JSON has lists where the constructors' defaults are tuples."""
    return (
        tuple(map(_frozen, value)) if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)) else value
    )
