"""What is compared with: FedAvg of the ballast in one process, without network, disk, keys or ledger.

    python plain_loop.py HOME MEGABYTES HOSPITALS ROUNDS

Writes its rounds' times as HOME/rounds.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from ballast import ballast_shapes, examples_of, expected_value, local_amount, require_exact


def main() -> None:
    """Run the loop and check what came out."""
    home, megabytes = Path(sys.argv[1]), float(sys.argv[2])
    numbers, rounds = range(1, int(sys.argv[3]) + 1), int(sys.argv[4])
    total = sum(examples_of(number) for number in numbers)
    shapes = ballast_shapes(megabytes)
    model = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    local = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    times = [time.time()]
    for _ in range(rounds):
        sums = {name: np.zeros(shape, np.float64) for name, shape in shapes.items()}
        for number in numbers:
            for name, tensor in model.items():
                np.add(tensor, local_amount(number), out=local[name])
            for name, tensor in local.items():
                sums[name] += examples_of(number) / total * tensor.astype(np.float64)
        model = {name: tensor.astype(np.float32) for name, tensor in sums.items()}
        times.append(time.time())
    require_exact(list(model.values()), expected_value(numbers, rounds))
    (home / "rounds.json").write_text(json.dumps({"times": times}))


if __name__ == "__main__":
    main()
