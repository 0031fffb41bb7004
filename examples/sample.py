"""Pictures from a bundled model, a row a class, in sample.png."""

import fastdiff
from fastdiff import pictures

model = fastdiff.load("emoji-unet-32")
classes = [name for name in model.info.classes for _ in range(2)]
x = fastdiff.sample(
    model,
    (len(classes), *model.info.shape),
    solver="dpmpp-2m",
    steps=6,  # 15 to 20 for good pictures
    guidance=2.0,
    cond=model.info.condition(classes, len(classes)),
    uncond=model.info.condition(None, len(classes)),
    seed=0,  # picture k of a seed is the same at any batch size
)
pictures.save_png("sample.png", pictures.grid(x, columns=6), zoom=4)
