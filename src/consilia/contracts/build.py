"""Compiles the contracts into `artifacts/`; `--check` says whether the committed artifacts match the sources.

`python -m consilia.contracts.build [--check]`. Only this module needs Vyper; everything else reads the JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ARTIFACTS = FOLDER / "artifacts"
CONTRACTS = ("registry", "escrow", "training", "exchange", "diagnosis")


def compile_contract(name: str) -> str:
    """The artifact of one contract as JSON text: ABI, bytecode, compiler, sources."""
    import vyper
    from vyper.compiler import compile_from_file_input
    from vyper.compiler.input_bundle import FilesystemInputBundle

    bundle = FilesystemInputBundle([FOLDER])
    # not CompilerData on its own: that forgets the source's `# pragma evm-version`
    compiled = compile_from_file_input(
        bundle.load_file(f"{name}.vy"), input_bundle=bundle, output_formats=["abi", "bytecode"]
    )
    artifact = {
        "contract": name,
        "compiler": f"vyper {vyper.__version__}",
        "sources": _source_digests(name),
        "abi": compiled["abi"],
        "bytecode": compiled["bytecode"],
    }
    return json.dumps(artifact, indent=1) + "\n"


def _source_digests(name: str) -> dict[str, str]:
    """SHA-256 of the contract's source and of those it imports, themselves included, by file name."""
    digests: dict[str, str] = {}
    waiting = [name]
    while waiting:
        source = FOLDER / f"{waiting.pop()}.vy"
        if source.name in digests:
            continue
        content = source.read_bytes()
        digests[source.name] = hashlib.sha256(content).hexdigest()
        waiting += [
            line.removeprefix("import ")
            for line in content.decode().splitlines()
            if line.startswith("import ")
        ]
    return dict(sorted(digests.items()))


def stale_artifacts() -> list[str]:
    """The contracts whose committed artifact is not what their sources compile to."""
    stale = []
    for name in CONTRACTS:
        path = ARTIFACTS / f"{name}.json"
        if not path.exists() or path.read_text() != compile_contract(name):
            stale.append(name)
    return stale


def main(arguments: list[str] | None = None) -> int:
    """Writes the artifacts, or with `--check` compares them; the exit code is 1 if one is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if an artifact is stale")
    if parser.parse_args(arguments).check:
        stale = stale_artifacts()
        if stale:
            names = ", ".join(stale)
            sys.stderr.write(
                f"stale artifacts: {names}; run python -m consilia.contracts.build, commit them\n"
            )
        return 1 if stale else 0
    ARTIFACTS.mkdir(exist_ok=True)
    for name in CONTRACTS:
        (ARTIFACTS / f"{name}.json").write_text(compile_contract(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
