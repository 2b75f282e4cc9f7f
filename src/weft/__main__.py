"""`python -m weft`, which torchrun can start."""

import os
import sys

from weft.cli import entry

if __name__ == "__main__":
    code = entry()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # The threads of a process group may abort a process that is ending; there is nothing left to end in order.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
