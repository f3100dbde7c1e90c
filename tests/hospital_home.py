"""A hospital's home with settings and no keys: enough for everything that looks at its data alone."""

from __future__ import annotations

from pathlib import Path

SETTINGS = """name = "hospital"
[ledger]
url = "http://127.0.0.1:1"
deployment = "deployment.json"
[store]
path = "store"
[keys]
[data]
path = "data"
"""


def make_home(home: Path) -> Path:
    """Make the folder and its settings."""
    home.mkdir(parents=True)
    (home / "consilia.toml").write_text(SETTINGS)
    return home
