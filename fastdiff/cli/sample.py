"""`fastdiff sample`: pictures from a model into one PNG."""

from __future__ import annotations

from pathlib import Path

import torch

import fastdiff
from fastdiff import arguments, pictures
from fastdiff.cli import drawing, picture_model
from fastdiff.cli.console import console, print_json
from fastdiff.errors import expect
from fastdiff.files import writable_folder
from fastdiff.models.info import ModelInfo, PromptInfo
from fastdiff.solvers import get_solver


def run(
    model_name: str,
    class_name: str | None,
    prompt: str | None,
    count: int | None,
    solver_name: str | None,
    steps: int | None,
    grid: str | None,
    guidance: float | None,
    seed: int,
    batch: int,
    out: str,
    zoom: int,
    as_json: bool,
    prompts: str | None = None,
    image: str | None = None,
    strength: float | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> None:
    """See `fastdiff sample --help`. After Ctrl-C the file holds the batches that were finished."""
    where, kind = arguments.device("--device", device or "cpu"), arguments.dtype("--dtype", dtype)
    path = Path(out)
    expect(path.suffix.lower() == ".png", f"--out must end in .png, got {out!r}")
    expect(not path.is_dir(), f"--out names a folder, expected a file: {out!r}")
    # Refuse what is wrong before a model is loaded.
    get_solver(solver_name or drawing.SOLVER)
    fastdiff.CFG(1.0 if guidance is None else guidance)
    started, share = image, drawing.strength_of(strength, image)
    facts: dict[str, object] = {}
    if picture_model.is_subject(model_name):
        expect(prompts is None, "--prompts is for bundled models only")
        words = picture_model.words_of(model_name, class_name, prompt)
        model = picture_model.of_subject(model_name, words, guidance, where if device else None, kind)
        total, columns = count or 16, None
        facts |= {"prompt": prompt} | ({} if class_name is None else {"class": class_name})
    else:
        loaded = fastdiff.load(model_name, device=where, dtype=kind)
        name = picture_model.condition_of(loaded.info, class_name, prompt)
        expect(prompts is None or name is None, "give --prompts or one of --prompt and --class, not both")
        lines = [name] if prompts is None else _lines(prompts, loaded.info)
        each = count or (16 if prompts is None else 1)
        names = [name for name in lines for _ in range(each)]
        condition = None
        if loaded.info.image is not None:
            expect(strength is None, f"--strength: {model_name} does not start from --image, it is conditioned on it")
            started, condition = None, picture_model.image_of(loaded.info, image)
        model = picture_model.of_bundled(loaded, names, guidance, condition)
        total, columns = len(names), each if prompts and each > 1 else None
        prompted = isinstance(loaded.info, PromptInfo)
        facts |= {"class": None if prompted else name, "prompt": name if prompted else None}
        facts |= {} if prompts is None else {"prompts": list(dict.fromkeys(names))}
    planned = drawing.run_of(model, solver_name, steps, grid, seed)
    picture = None if started is None else pictures.middle(pictures.load_pixels(started), *model.size())[None]
    writable_folder(path.parent)

    finished: list[torch.Tensor] = []
    try:
        elapsed = drawing.draw(planned, total, batch, finished, picture=picture, strength=share)
    finally:
        if finished:
            samples = torch.cat([model.pictures(part) for part in finished])
            columns = columns or min(len(samples), max(4, round(len(samples) ** 0.5)))
            margin = 0 if len(samples) == 1 else 2  # one alone is of the model's size, as `edit` takes it
            pictures.save_png(path, pictures.grid(samples, columns, margin=margin), zoom=zoom)
            console.print(f"{len(samples)} picture{'s' * (len(samples) != 1)} in [bold]{path}[/bold]")
    if as_json:
        print_json(
            {
                "file": str(path),
                "model": model_name,
                **facts,
                **({} if image is None else {"image": image}),
                **({} if started is None else {"strength": share}),
                "count": total,
                "solver": planned.solver.name,
                "steps": None if planned.solver.adaptive else planned.steps,
                "guidance": model.scale,
                "seed": seed,
                "device": str(model.device),
                "dtype": dtype,
                "seconds": round(elapsed.seconds, 3),
            }
        )


def _lines(path: str, info: ModelInfo) -> list[str | None]:
    """The prompts, or classes, of a file, one a line. Raises ValueError that names the line for one that is unknown."""
    found = picture_model.lines_of(path)
    for number, line in found:
        try:
            info.condition(line, 1)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return [line for _, line in found]
