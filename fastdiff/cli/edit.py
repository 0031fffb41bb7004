"""`fastdiff edit COMMAND`: what each command is called with. A command is imported when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdiff.cli import options

app = typer.Typer(no_args_is_help=True, help="Change a picture: fill it, vary it, restore it, or edit it by words.")


@app.command()
def inpaint(
    image: options.Image,
    mask: options.Mask,
    hole: options.Hole = "black",
    model: options.Model = "emoji-unet-32",
    class_: options.Class = None,
    prompt: options.Prompt = None,
    method: Annotated[str, typer.Option(help="repaint, replacement, palette, glide, imputation or mcg.")] = "repaint",
    jumps: Annotated[
        str | None,
        typer.Option(help="Of repaint: steps of a jump, and how often each stretch is taken; 5:2 if not given."),
    ] = None,
    count: options.Count = 1,
    solver: options.Solver = "ddpm",
    steps: options.Steps = 20,
    grid: options.Grid = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    out: options.Out = "edited.png",
    strip: options.Strip = None,
    zoom: options.StripZoom = 4,
    overwrite: options.Overwrite = False,
    device: options.OwnDevice = None,
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Fill the hole of a picture. The rest keeps its pixels to the bit."""
    from fastdiff.cli import edit_inpaint as command

    command.run(
        command.Asked(model, class_, prompt, guidance, seed, device, dtype),
        command.Outputs(out, strip, zoom, overwrite, json, count),
        image, mask, hole, method, jumps, solver, steps, grid,
    )  # fmt: skip


@app.command()
def variation(
    image: options.Image,
    strength: options.Strength = None,
    model: options.Model = "emoji-unet-32",
    class_: options.Class = None,
    prompt: options.Prompt = None,
    count: options.Count = 1,
    solver: options.OwnSolver = None,
    steps: options.OwnSteps = None,
    grid: options.Grid = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    batch: options.Batch = 32,
    out: options.Out = "edited.png",
    strip: options.Strip = None,
    zoom: options.StripZoom = 4,
    overwrite: options.Overwrite = False,
    device: options.OwnDevice = None,
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Another picture like this one: noise is added, and taken off again (SDEdit)."""
    from fastdiff.cli import edit_variation as command

    command.run(
        command.Asked(model, class_, prompt, guidance, seed, device, dtype),
        command.Outputs(out, strip, zoom, overwrite, json, count),
        image, strength, solver, steps, grid, batch,
    )  # fmt: skip


@app.command()
def restore(
    image: options.Image,
    task: Annotated[str, typer.Option(help="superres, deblur or inpaint.")],
    factor: Annotated[
        int | None,
        typer.Option(help="Of superres: --image is so many times smaller than the result; 4 if not given.", min=2),
    ] = None,
    blur: Annotated[
        float | None, typer.Option(help="Of deblur: standard deviation of the blur in pixels; 1.5 if not given.")
    ] = None,
    mask: Annotated[str | None, typer.Option(help="Of inpaint: a picture as large as --image, with the hole.")] = None,
    hole: options.Hole = "black",
    scale: Annotated[float, typer.Option(help="How far each step goes to what was measured.")] = 2.0,
    model: options.Model = "emoji-unet-32",
    class_: options.Class = None,
    prompt: options.Prompt = None,
    count: options.Count = 1,
    solver: options.Solver = "ddim",
    steps: options.Steps = 50,
    grid: options.Grid = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    out: options.Out = "edited.png",
    strip: options.Strip = None,
    zoom: options.StripZoom = 4,
    overwrite: options.Overwrite = False,
    device: options.OwnDevice = None,
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Find the picture of which --image is a small, blurred or incomplete copy (DPS)."""
    from fastdiff.cli import edit_restore as command

    command.run(
        command.Asked(model, class_, prompt, guidance, seed, device, dtype),
        command.Outputs(out, strip, zoom, overwrite, json, count),
        image, task, factor, blur, mask, hole, scale, solver, steps, grid,
    )  # fmt: skip


@app.command()
def prompt(
    source: Annotated[str, typer.Option(help="The prompt of the picture before.")],
    prompt: options.Prompt = None,
    image: Annotated[
        str | None, typer.Option(help="A picture of --source to edit; without one, --seed and --source make it.")
    ] = None,
    model: options.Model = "emoji-ldm-64",
    mode: Annotated[
        str | None, typer.Option(help="replace (as many words), refine or reweight; what fits if not given.")
    ] = None,
    weight: Annotated[list[str] | None, typer.Option(help="Factor of a word of --prompt, e.g. red=2.")] = None,
    cross: Annotated[float, typer.Option(help="Share of the steps with the source's maps of words.")] = 0.8,
    self_attention: Annotated[float, typer.Option("--self", help="Share with its maps of pixels.")] = 0.4,
    blend: Annotated[
        str | None, typer.Option(help="Change only what belongs to this word, e.g. heart, or apple,pear.")
    ] = None,
    blend_threshold: Annotated[float, typer.Option(help="The higher, the less --blend lets change.")] = 0.8,
    null_steps: Annotated[
        int | None, typer.Option(help="Updates a step that bring --image back; 5 if not given.", min=0, max=1_000)
    ] = None,
    solver: options.Solver = "ddim",
    steps: options.Steps = 20,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    out: options.Out = "edited.png",
    strip: options.Strip = None,
    zoom: options.StripZoom = 4,
    overwrite: options.Overwrite = False,
    device: options.OwnDevice = None,
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Change words of the prompt and keep the picture's shape (prompt-to-prompt)."""
    from fastdiff.cli import edit_prompt as command

    command.run(
        command.Asked(model, None, prompt, guidance, seed, device, dtype),
        command.Outputs(out, strip, zoom, overwrite, json),
        source, image, mode, cross, self_attention, weight or (), blend, blend_threshold, null_steps, solver, steps,
    )  # fmt: skip


@app.command()
def diffedit(
    image: options.Image,
    source: Annotated[str | None, typer.Option(help="The class or prompt of --image; none if not given.")] = None,
    model: options.Model = "emoji-ldm-64",
    class_: options.Class = None,
    prompt: options.Prompt = None,
    mask: Annotated[
        str | None, typer.Option(help="What is to change, as large as --image; found if not given.")
    ] = None,
    hole: options.Hole = "black",
    threshold: Annotated[
        float | None, typer.Option(help="The higher, the less is found to change; 0.2 if not given.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Share of the steps that is made; 0.8 if not given.")] = None,
    steps: options.Steps = 25,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    out: options.Out = "edited.png",
    strip: options.Strip = None,
    zoom: options.StripZoom = 4,
    overwrite: options.Overwrite = False,
    device: options.OwnDevice = None,
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Change a picture to another prompt or class only where that makes a difference (DiffEdit)."""
    from fastdiff.cli import edit_diffedit as command

    command.run(
        command.Asked(model, class_, prompt, guidance, seed, device, dtype),
        command.Outputs(out, strip, zoom, overwrite, json),
        image, source, mask, hole, threshold, strength, steps,
    )  # fmt: skip
