"""`python -m consilia.ledger.embedded SETTINGS.json`: a node as the child of a hospital's process.

The first line of its standard input is the secret of the key that it signs with, 64 hex digits, and after a space the
account's delegation to that key, 130 hex digits (node_key.py); without a delegation the key is the account's own. Both
touch no disk and no list of processes. After an empty line the node only follows.

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

    from consilia.errors import ConsiliaError, SettingsError
    from consilia.ledger.embedded.genesis import Genesis, NodeSettings
    from consilia.ledger.embedded.node import run_node
    from consilia.ledger.embedded.node_key import Credentials, NodeKey

    logging.basicConfig(level=logging.WARNING, format="node: %(levelname)s %(message)s")
    stop = threading.Event()

    def read_credentials(network: bytes) -> Credentials | None:
        words = sys.stdin.readline().split()
        try:
            secret, *delegation = (bytes.fromhex(word) for word in words[:2]) if words else (b"",)
            if not secret:
                return None
            key = NodeKey(secret)
        except ValueError as error:  # which must not repeat what was read
            raise SettingsError(
                "expected a secret key as 64 hex digits in the first line of input, and perhaps a delegation"
            ) from error
        return Credentials(key, delegation[0]) if delegation else Credentials.of_account(key, network)

    def watch_parent() -> None:
        while os.getppid() == parent and not stop.wait(PARENT_LOOK_SECONDS):
            pass
        stop.set()

    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m consilia.ledger.embedded SETTINGS.json\n")
        return 2
    threading.Thread(target=watch_parent, name="parent", daemon=True).start()
    try:
        settings = NodeSettings.load(Path(sys.argv[1]))
        run_node(settings, read_credentials(Genesis.load(settings.genesis).digest()), stop)
    except ConsiliaError as error:
        sys.stderr.write(f"node: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
