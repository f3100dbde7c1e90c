"""`consilia hospital run` with the tests' trainer instead of a detector: `python -m ... HOME NUMBER`."""

from __future__ import annotations

import sys
from pathlib import Path

from consilia.cli.hospital import serve
from consilia.cli.output import Format
from tests.consortium import TinyTrainer

if __name__ == "__main__":
    serve(Path(sys.argv[1]), Format.JSON, lambda spec, seed: TinyTrainer(int(sys.argv[2])))
