"""The hashcash seal, and the process that searches for one.

This file is also a program: a node runs it by path, isolated, so that the search costs a bare interpreter
with hashlib (about 10 MB) and a core only while there is work. It reads jobs from stdin, one a line, and
stops when stdin closes: the node holds the only write end of that pipe, so not even kill -9 leaves a search
behind.
"""

import hashlib
import select
import sys

SEAL_DOMAIN = b"consilia/hashcash/v1"
NONCES_PER_LOOK = 2000  # about 2 ms of work between two looks at stdin: how long stale work can go on


def seal_digest(mining_hash: bytes, nonce: bytes) -> bytes:
    """The work: double SHA-256 over a domain label, the unsealed header's hash and a nonce of 8 bytes.

    The mining hash covers parent, state and coinbase: a seal cannot be moved to another block or miner.
    """
    return hashlib.sha256(hashlib.sha256(SEAL_DOMAIN + mining_hash + nonce).digest()).digest()


def seal_ceiling(difficulty: int) -> bytes:
    """The greatest digest that meets the difficulty; `difficulty` is the expected number of hashes."""
    return ((1 << 256) // difficulty - 1).to_bytes(32, "big")


def search(mining_hash: bytes, ceiling: bytes, start: int, count: int) -> bytes | None:
    """The first of `count` nonces from `start` whose digest is at most `ceiling`, or None."""
    sha256 = hashlib.sha256
    prefix = SEAL_DOMAIN + mining_hash
    for number in range(start, start + count):
        nonce = number.to_bytes(8, "big")
        if sha256(sha256(prefix + nonce).digest()).digest() <= ceiling:
            return nonce
    return None


def main() -> None:
    """Serve jobs: a line `mining_hash ceiling start` (hex) replaces the job, an empty line drops it."""
    stdin = open(0, "rb", buffering=0)  # noqa: SIM115  # unbuffered: select() must see what is unread
    job = None
    while True:
        if job is None or select.select([stdin], [], [], 0)[0]:
            line = stdin.readline()
            if not line:
                return
            words = line.split()
            job = None
            if words:
                mining_hash, ceiling = bytes.fromhex(words[0].decode()), bytes.fromhex(words[1].decode())
                job, start = mining_hash, int(words[2], 16)
            continue
        nonce = search(job, ceiling, start, NONCES_PER_LOOK)
        start += NONCES_PER_LOOK
        if nonce is not None:
            sys.stdout.write(f"{job.hex()} {nonce.hex()}\n")
            sys.stdout.flush()
            job = None


if __name__ == "__main__":
    main()
