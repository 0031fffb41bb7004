"""`fastdiff edit diffedit`: change a picture where two conditions see different noise, or in a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import editing
from fastdiff.cli.drawing import counted, strength_of
from fastdiff.cli.edit_files import Asked, Outputs, read, read_mask, shrunk
from fastdiff.cli.picture_model import PictureModel
from fastdiff.errors import expect

STRENGTH, THRESHOLD = 0.8, 0.2


def run(
    asked: Asked,
    outputs: Outputs,
    image: str,
    source: str | None,
    mask: str | None,
    hole: str,
    threshold: float | None,
    strength: float | None,
    steps: int,
) -> None:
    """See `fastdiff edit diffedit --help`."""
    strength = strength_of(STRENGTH if strength is None else strength, image)
    expect(int(steps * strength) >= 1, f"--strength {strength:g} leaves none of {steps} steps")
    expect(mask is None or threshold is None, "--threshold is for the mask that is found, give it or --mask")
    threshold = THRESHOLD if threshold is None else threshold
    expect(0 < threshold < 1, f"--threshold must lie between 0 and 1, got {threshold:g}")
    model = asked.opened_for_two(source)
    expect(
        model.conditions(1, 1)[0] != {}, f"diffedit needs a model with a class or a prompt, which {model.name} is not"
    )
    picture = read(image, model.size())
    kept = None if mask is None else read_mask(mask, hole, picture, model.size())
    x0 = model.samples(picture.values)
    of_source, of_target = model.given(0, 1), model.given(1, 1)
    common = {key: of_target[key] for key in ("schedule", "prediction")}
    texts = {"source": of_source["cond"], "target": of_target["cond"]}
    with outputs.folders(picture):
        with counted(model, f"diffedit, {steps} step{'s' * (steps != 1)}", 2 * int(steps * strength)) as elapsed:
            if kept is None:
                time = 0.5 * model.schedule.t_max
                found = editing.diffedit_mask(
                    model.network, x0, t=time, threshold=threshold, seed=asked.seed, **texts, **common
                )
                expect(bool(found.any()), f"--threshold {threshold:g} leaves nothing to change, give a smaller one")
            else:
                found = (~shrunk(kept, model))[:, 0].to(x0)
            changed = editing.diffedit(
                model.network, x0, found, strength=strength, steps=steps, guidance=of_target["guidance"],
                uncond=of_target["uncond"], **texts, **common,
            )  # fmt: skip
        after = model.pictures(changed).cpu()
        if kept is not None:  # the picture's bits, also where an autoencoder or a lower precision came between
            after = torch.where(kept, picture.values, after)
        shown = _enlarged(found, model) if kept is None else kept
        facts = {"image": image, "source": source, "mask": mask, "strength": strength, "steps": steps}
        outputs.save(
            picture.values, shown, after, {**asked.facts(model), **facts, "seconds": round(elapsed.seconds, 3)}
        )


def _enlarged(changed: Tensor, model: PictureModel) -> Tensor:
    """A mask of samples (1, h, w), 1 where they change, as one of pictures (1, 1, H, W), True where they are kept."""
    return F.interpolate(changed[None].float().cpu(), model.size()) == 0
