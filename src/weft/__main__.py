"""`python -m weft`, which torchrun can start."""

import sys

from weft.cli import main

sys.exit(main())
