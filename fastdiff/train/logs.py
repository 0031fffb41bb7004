"""How a run goes, for TensorBoard where that is installed; log.csv is written with the checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray


class Board:
    """Events in `folder`/tensorboard, or nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # what a killed run wrote after its checkpoint is written again
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: dict[str, float], picture: NDArray | None = None) -> None:
        """Values by name, and a picture (H, W, 3) uint8."""
        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if picture is not None:
            self._writer.add_image("samples", torch.from_numpy(picture), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """No more follows."""
        if self._writer is not None:
            self._writer.close()
