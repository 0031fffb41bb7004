"""Where the golden data are: tests/data/golden, or the folder in FASTDIFF_GOLDEN, which may hold some kinds alone."""

import json
import os
from pathlib import Path

GIVEN = os.environ.get("FASTDIFF_GOLDEN")
FOLDER = Path(GIVEN or Path(__file__).parents[1] / "data" / "golden")


def cases(kind):
    """Those of KIND.json and KIND-2.json, such as models.json and models-2.json, by name. None if the folder that was
    given has only files of other kinds."""
    found = [path for name in (kind, f"{kind}-2") if (path := FOLDER / f"{name}.json").exists()]
    if not found and not (GIVEN and any(FOLDER.glob("*.json"))):
        raise FileNotFoundError(f"{FOLDER} has neither {kind}.json nor {kind}-2.json")
    return {name: about for path in found for name, about in json.loads(path.read_text()).items()}
