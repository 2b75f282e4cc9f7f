"""Where the repository and the shared data lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("WEFT_DATA", ROOT.parent / "shared" / "data"))
