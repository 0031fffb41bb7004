"""What docs/configuration.md leaves to its reader."""

import torch  # noqa: F401
