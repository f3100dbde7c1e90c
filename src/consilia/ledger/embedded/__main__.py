"""`python -m consilia.ledger.embedded SETTINGS.json`: a node as the child of a hospital's process.

It stops when its parent ends, however that happens: a node must not outlive the hospital that answers for it.
"""

import os
import sys

PARENT_LOOK_SECONDS = 0.5


def main() -> int:
    """Run the node; 0, or 2 for unusable settings."""
    parent = os.getppid()  # read before the slow imports, lest the parent end meanwhile

    import logging
    import threading
    from pathlib import Path

    from consilia.errors import ConsiliaError
    from consilia.ledger.embedded.genesis import NodeSettings
    from consilia.ledger.embedded.node import run_node

    logging.basicConfig(level=logging.WARNING, format="node: %(levelname)s %(message)s")
    stop = threading.Event()

    def watch_parent() -> None:
        while os.getppid() == parent and not stop.wait(PARENT_LOOK_SECONDS):
            pass
        stop.set()

    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m consilia.ledger.embedded SETTINGS.json\n")
        return 2
    threading.Thread(target=watch_parent, name="parent", daemon=True).start()
    try:
        run_node(NodeSettings.load(Path(sys.argv[1])), stop)
    except ConsiliaError as error:
        sys.stderr.write(f"node: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
