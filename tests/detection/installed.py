"""A package that offers detectors, put on the path as pip would."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilia.detection.detectors import ENTRY_POINTS


def install_detectors(
    site: Path, monkeypatch: pytest.MonkeyPatch, name: str, points: dict[str, str], folder: Path
) -> None:
    """Write the metadata of a distribution with these entry points, whose modules are in `folder`."""
    info = site / name / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"{key} = {value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(site / name))
    monkeypatch.syspath_prepend(str(folder))
