"""A federation beside its baselines, in Python: `python examples/compare.py examples/sft.yaml`."""

import sys

import weft

for fed_alg in ("local", "fedavg", "central"):
    run = weft.train(sys.argv[1], fed_alg=fed_alg, output_dir=f"runs/compare/{fed_alg}")
    print(fed_alg, run.summary["eval"])
