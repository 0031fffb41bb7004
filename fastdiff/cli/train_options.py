"""The options of `fastdiff train`: those of every recipe, and those of the recipe `folder`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fastdiff.errors import expect

_OWN = "Only for `folder`"


def _own(help: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_OWN, **options)


def train(
    recipe: Annotated[
        str, typer.Argument(help="What to train: a bundled model, e.g. emoji-unet-32, or `folder`, your own pictures.")
    ],
    out: Annotated[
        str | None, typer.Option(help="Folder of the run; runs/RECIPE if not given. A run there goes on.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps, without the autoencoder's; the recipe's, or 10000, if not given.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; the recipe's if not given.", min=0, max=2**31 - 1)] = None,
    font: Annotated[str | None, typer.Option(help="Path of NotoColorEmoji.ttf, if it is not in a usual place.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    export: Annotated[
        bool, typer.Option("--export", help="Write weights, card and pictures of the last checkpoint; no training.")
    ] = False,
    images: Annotated[str | None, _own("Folder of PNG, JPEG and WebP pictures; those in its folders too.")] = None,
    model: Annotated[
        str | None,
        _own("unet-16, unet-32-small, unet-32 or unet-64: the number is the pictures' size; unet-32 if not given."),
    ] = None,
    loss: Annotated[str | None, _own("denoising, ddpm or edm; denoising if not given.")] = None,
    schedule: Annotated[str | None, _own("Noise schedule; cosine, for the loss edm edm, if not given.")] = None,
    prediction: Annotated[
        str | None, _own("What the network predicts: eps, x0, v, flow, edm; v, for the loss edm edm, if not given.")
    ] = None,
    classes: Annotated[bool, _own("The folders in --images are classes.", "--classes")] = False,
    mirror: Annotated[bool, _own("Half of the pictures are mirrored.", "--mirror")] = False,
    skip_unreadable: Annotated[
        bool, _own("Leave out files that cannot be read, which end the command otherwise.", "--skip-unreadable")
    ] = False,
    batch: Annotated[int | None, _own("Pictures of a batch; 32 if not given.", min=1)] = None,
    accumulate: Annotated[
        int | None, _own("Batches of a step; processes of torchrun share them; one a process if not given.", min=1)
    ] = None,
    learning_rate: Annotated[float | None, _own("Highest learning rate; 0.0006 if not given.")] = None,
    warmup: Annotated[int | None, _own("Steps until the highest learning rate; 100 if not given.", min=0)] = None,
    ema: Annotated[
        str | None,
        _own("Decays of averaged weights, separated by commas; the first is the result; 0.999 if not given."),
    ] = None,
    precision: Annotated[
        str | None, _own("bfloat16, float32 or float16; bfloat16 on a GPU, else float32, if not given.")
    ] = None,
    checkpoint_every: Annotated[int | None, _own("Steps between checkpoints; 100 if not given.", min=1)] = None,
    validate_every: Annotated[
        int | None, _own("Steps between samples and rows of the log; 500 if not given.", min=1)
    ] = None,
) -> None:
    """Train a bundled model, or a network on your own pictures; Ctrl-C keeps the state, and the same command goes on
    with it.

    `fastdiff train folder --images DIR` trains on your pictures, and
    `fastdiff sample --model OUT` samples from what came out.
    Under torchrun several processes train one network.

    A bundled model needs the extra `train`, the font Noto Color Emoji
    (apt install fonts-noto-color-emoji), and hours: on two cores the bundled
    weights took 2.1 (emoji-unet-32), 3.7 (emoji-ldm-64) and 3.9
    (emoji-dit-64). What a recipe learns from is trained first, in a folder
    beside --out, if it is not there or not finished: the autoencoder of a
    model on latents, the teacher of a student.
    """
    own = {
        "images": images, "model": model, "loss": loss, "schedule": schedule, "prediction": prediction,
        "classes": classes or None, "mirror": mirror or None, "skip_unreadable": skip_unreadable or None,
        "batch": batch, "accumulate": accumulate, "learning_rate": learning_rate, "warmup": warmup, "ema": ema,
        "precision": precision, "checkpoint_every": checkpoint_every, "validate_every": validate_every,
    }  # fmt: skip
    given = {name: value for name, value in own.items() if value is not None}
    if recipe == "folder":
        from fastdiff.cli import train_folder

        wrong = [name for name, value in (("--font", font), ("--export", export)) if value]
        expect(not wrong, f"{' and '.join(wrong)}: not for folder")
        train_folder.run(out, steps, seed or 0, device, given)
        return
    names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    expect(not given, f"{names}: only for folder, as the recipe {recipe!r} has its own")
    from fastdiff.cli import train as command

    command.run(recipe, out, steps, seed, font, device, export)
