"""Makes the recorded routes of tests/test_replay.py: which experts a real model chose.

    python tests/vectors/make_routes.py RECORDED.csv.gz

RECORDED has the columns step, layer, slot, expert, weight: Qwen3-30B-A3B with 6 experts a token,
reading 27 tokens and answering with 129, as published in the repository Helldez/BigMoeOnEdge on
GitHub under the Apache License 2.0. The prompt lacks its last layer and is left out.

Writes tests/data/routes.npz:
    routes  uint8[129 tokens, 48 layers, 6]  experts, the heaviest first
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "data/routes.npz"
LAYERS, USED = 48, 6


def main(path: str) -> None:
    steps: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            steps[int(row["step"])][int(row["layer"]), int(row["slot"])] = int(row["expert"])
    whole = [step for _, step in sorted(steps.items()) if len(step) == LAYERS * USED]
    routes = [[step[at] for at in sorted(step)] for step in whole]
    np.savez_compressed(OUT, routes=np.array(routes, np.uint8).reshape(-1, LAYERS, USED))


if __name__ == "__main__":
    main(sys.argv[1])
