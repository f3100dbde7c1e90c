"""A hospital as `consilia hospital run` starts it, but with the ballast for its local work.

python -m ballast_hospital HOME
"""

from __future__ import annotations

import sys
from pathlib import Path

from ballast import BallastTrainer

from consilia.cli.hospital import serve
from consilia.cli.output import Format
from consilia.protocols.task_spec import TaskSpec


def main() -> None:
    """Serve until stopped; the home's name ends in the hospital's number."""
    home = Path(sys.argv[1])
    number = int(home.name.rpartition("-")[2])

    def new_trainer(spec: TaskSpec, seed: int) -> BallastTrainer:
        return BallastTrainer(number)

    serve(home, Format.JSON, new_trainer)


if __name__ == "__main__":
    main()
