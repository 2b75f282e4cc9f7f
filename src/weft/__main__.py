"""Entry point of `python -m weft`, which torchrun can start."""

import os
import sys

from weft.cli import entry

if __name__ == "__main__":
    code = entry()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of a process group may abort a process during its normal exit, after all work is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
