"""The same on a Ray cluster. `local` starts one on this machine; a cluster that is there is given by its address."""

from fastdiff import distributed

found = distributed.sample(
    "emoji-unet-32", "emoji", count=16, batch=8, shard=8, steps=2, format="webdataset", features="emoji",
    statistics="moments", cluster="local", workers=1,
)  # fmt: skip
print(f"{found.samples} samples, Frechet distance {found.statistics['frechet']:.3g} on the features of {found.kinds}")
