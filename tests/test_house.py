"""The house itself: what is public is documented, help is light, and the wheel brings what it needs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import typer

from consilia.cli import app

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "consilia").rglob("*.py"))
HEAVY = ("torch", "torchvision", "web3", "pydicom", "vyper", "eth", "skimage", "PIL", "numpy")


def undocumented(path: Path) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring."""
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py" and not ast.get_docstring(tree):
        yield str(path)
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    for prefix, scope in scopes:
        for node in scope.body:
            if isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            ) and not node.name.startswith("_"):
                setter = any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)
                if not ast.get_docstring(node) and not setter:
                    yield f"{path.name}: {prefix}{node.name}"
                if isinstance(node, ast.ClassDef):
                    scopes.append((f"{node.name}.", node))


OVERRIDES = {
    "do_POST",
    "log_message",
    "process_request",
    "process_request_thread",
    "handle_error",
    "make_request",
}
OVERRIDES |= {
    "readable",
    "readinto",
    "settings_customise_sources",
    "make_batch_request",
    "forward",
    "wake_and_shutdown",
}
RPC_TABLES = {"ChainMethods."}
"""Answers to JSON-RPC methods; what they do is said where the methods are."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_public_name_is_documented(path: Path) -> None:
    found = [name for name in undocumented(path) if name.rsplit(".", 1)[-1] not in OVERRIDES]
    found = [name for name in found if not any(table in name for table in RPC_TABLES)]
    assert not found


def commands(group: typer.Typer, prefix: str = "consilia") -> Iterator[tuple[str, typer.models.CommandInfo]]:
    for command in group.registered_commands:
        assert command.callback
        yield f"{prefix} {command.name or command.callback.__name__}", command
    for child in group.registered_groups:
        assert child.typer_instance
        yield from commands(child.typer_instance, f"{prefix} {child.name}")


def test_every_command_is_documented() -> None:
    pages = {page: (ROOT / page).read_text() for page in ("docs/getting-started.md", "README.md")}
    names = [name for name, _ in commands(app)]
    assert {"consilia demo", "consilia server run", "consilia hospital run", "consilia audit verify"} <= set(
        names
    )
    for name, command in commands(app):
        assert command.callback and command.callback.__doc__, name
        for page, text in pages.items():
            assert name in text, f"{name} is not in {page}"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["server", "run", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import json, sys
from consilia.cli import app
try:
    app({arguments!r})
except SystemExit as end:
    assert not end.code
print(json.dumps(sorted(name for name in {HEAVY!r} if name in sys.modules)))
"""
    assert json.loads(run_python(code).splitlines()[-1]) == []


def test_the_package_brings_contracts_and_report_templates() -> None:
    package = files("consilia")
    for contract in ("registry", "escrow", "training", "exchange"):
        artifact = json.loads((package / "contracts" / "artifacts" / f"{contract}.json").read_text())
        assert artifact["abi"] and artifact["bytecode"]
    templates = package / "cli" / "report" / "templates"
    assert {"report.html.j2", "report.css"} <= {file.name for file in templates.iterdir()}
    assert (package / "py.typed").is_file()


def test_the_control_plane_works_without_learning_and_dicom() -> None:
    code = """
import sys
for name in ("torch", "torchvision", "pydicom", "skimage", "vyper"):
    sys.modules[name] = None  # an import of it fails from here on
import consilia.roles.server, consilia.roles.hospital, consilia.roles.audit.home
import consilia.cli.server, consilia.cli.hospital
print("ready")
"""
    assert run_python(code).strip() == "ready"


def test_no_pickle_anywhere() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {
                name.split(".")[0] for name in names
            }, path
