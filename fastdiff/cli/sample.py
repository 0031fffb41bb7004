"""`fastdiff sample`: pictures from a bundled model into one PNG."""

from __future__ import annotations

from pathlib import Path

import torch

import fastdiff
from fastdiff import arguments, pictures
from fastdiff.bench.timing import timed
from fastdiff.cli import sample_subject
from fastdiff.cli.console import console, print_json, progress
from fastdiff.errors import expect
from fastdiff.files import writable_folder
from fastdiff.models import bundled
from fastdiff.models.bundled import BundledModel, to_pictures
from fastdiff.models.info import ModelInfo, PromptInfo
from fastdiff.models.unet import UNet
from fastdiff.process.grids import make_grid
from fastdiff.solvers import get_solver

GUIDANCE = 2.0


def run(
    model_name: str,
    class_name: str | None,
    prompt: str | None,
    count: int | None,
    solver_name: str,
    steps: int,
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
    solver = get_solver(solver_name)
    cfg = fastdiff.CFG(GUIDANCE if guidance is None else guidance)
    if model_name not in bundled.names() and sample_subject.is_subject(model_name):
        given = {"--class": class_name, "--prompts": prompts, "--image": image, "--strength": strength}
        wrong = [option for option, value in given.items() if value is not None]
        expect(not wrong, f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} for bundled models only")
        sample_subject.run(
            model_name, prompt, count or 16, solver, steps, grid, guidance, seed, batch, path, zoom, as_json,
            where if device else None, kind,
        )  # fmt: skip
        return
    expect(
        model_name in bundled.names() or "/" not in model_name,
        f"--model {model_name!r}: there is no such folder; bundled models are {', '.join(bundled.names())}",
    )
    model = fastdiff.load(model_name, device=where, dtype=kind)
    # Refuses bad steps before the progress bar.
    times = make_grid(grid or model.info.schedule.grid or solver.grid, model.info.schedule, steps)
    prompted = isinstance(model.info, PromptInfo)
    name = _condition(model.info, class_name, prompt)
    expect(prompts is None or name is None, "give --prompts or one of --prompt and --class, not both")
    names = [name] if prompts is None else _lines(prompts, model.info)
    each = count or (16 if prompts is None else 1)
    names = [name for name in names for _ in range(each)]
    total, guided = len(names), names[0] is not None
    if not guided and guidance not in (None, 1):
        raise ValueError(f"--guidance {guidance:g} needs a condition to guide to: --class or --prompt")
    cond = model.info.condition(names, total)
    expect(strength is None or image is not None, "--strength needs --image")
    start, left = None, steps
    if image is not None:
        strength = 0.6 if strength is None else strength
        expect(0 < strength <= 1, f"--strength must be in (0, 1], got {strength:g}")
        start = float(times[-1] + strength * (times[0] - times[-1]))
        left = int((times < start).sum())
        starts = fastdiff.diffuse(
            _latents(model, image, where, kind).expand(total, -1, -1, -1), model.info.schedule, start, seed=seed
        )
    writable_folder(path.parent)

    finished: list[torch.Tensor] = []
    try:
        with timed(where) as elapsed, progress() as bar:
            task = bar.add(
                f"{solver.name}, {steps} step{'s' * (steps != 1)}",
                total=None if solver.adaptive else left * -(-total // batch),
            )
            for first in range(0, total, batch):
                size = min(batch, total - first)
                finished.append(
                    fastdiff.sample(
                        model,
                        (size, *model.info.shape) if start is None else starts[first : first + size],
                        start=start,
                        solver=solver,
                        steps=steps,
                        grid=grid,
                        guidance=cfg if guided else None,
                        cond={key: value[first : first + size] for key, value in cond.items()},
                        uncond=model.info.condition(None, size) if guided else None,
                        seed=seed,
                        first_sample=first,
                        # with a callback a GPU could not replay the loop as one graph
                        callback=None if where.type == "cuda" else lambda *_: bar.advance(task),
                    )
                )
                if where.type == "cuda":
                    bar.advance(task, left)
    finally:
        if finished:
            samples = torch.cat([to_pictures(model, part) for part in finished])
            columns = each if prompts and each > 1 else min(len(samples), max(4, round(len(samples) ** 0.5)))
            pictures.save_png(path, pictures.grid(samples, columns), zoom=zoom)
            console.print(f"{len(samples)} picture{'s' * (len(samples) != 1)} in [bold]{path}[/bold]")
    if as_json:
        print_json(
            {
                "file": str(path),
                "model": model_name,
                "class": None if prompted else name,
                "prompt": name if prompted else None,
                **({} if prompts is None else {"prompts": list(dict.fromkeys(names))}),
                **({} if start is None else {"image": image, "strength": strength}),
                "count": total,
                "solver": solver.name,
                "steps": steps,
                "guidance": cfg.scale,
                "seed": seed,
                "device": str(where),
                "dtype": dtype,
                "seconds": round(elapsed.seconds, 3),
            }
        )


def _condition(info: ModelInfo, class_name: str | None, prompt: str | None) -> str | None:
    """What the model is conditioned on: the class or the prompt, whichever it takes; None for neither."""
    expect(class_name is None or prompt is None, "give --class or --prompt, not both")
    if isinstance(info, PromptInfo):
        expect(class_name in (None, "none"), f"{info.name} has no classes, give --prompt in place of --class")
        return prompt
    expect(prompt is None, f"{info.name} takes no prompts, give --class: {', '.join(info.classes)}")
    return None if class_name == "none" else class_name


def _lines(path: str, info: ModelInfo) -> list[str | None]:
    """The prompts, or classes, of a file, one a line. Raises ValueError that names the line for one that is unknown."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    found: list[str | None] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                info.condition(line.strip(), 1)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            found.append(line.strip())
    expect(len(found) > 0, f"{path} holds no prompts; it needs one a line")
    return found


def _latents(model: BundledModel, path: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(1, C, H, W): a picture as the model samples it."""
    size = to_pictures(model, torch.zeros(1, *model.info.shape, device=device, dtype=dtype)).shape[-1]
    picture = pictures.load_square(path, size)[None].to(device, dtype)
    if isinstance(model, UNet):
        return picture
    with torch.inference_mode():
        return model.encode(picture).clone()
