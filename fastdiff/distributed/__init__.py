"""Many samples: work in units that are there whole or not at all, made by this process, by others, or by many machines.

jobs.py cuts the work, sampler.py is what a worker does, formats.py and statistics.py what it writes, storage.py where.
scheduler.py decides who makes what, driver.py runs it over a pool: pools.py (this process), processes.py, on_ray.py.
manifest.py says what a store holds, torchrun.py needs no driver. sweeper.py and sweeping.py measure profiles.
"""

from fastdiff.distributed.api import sample
from fastdiff.distributed.results import Result
from fastdiff.distributed.scheduler import Limits, Progress
from fastdiff.distributed.sweeping import profile

__all__ = ["Limits", "Progress", "Result", "profile", "sample"]
