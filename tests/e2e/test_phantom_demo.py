"""The demo on phantoms, as it is by default but small: it ends with a second opinion, and its report shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import ROOT, audit

pytestmark = [pytest.mark.network, pytest.mark.slow]

SMALL = """
import sys
from pathlib import Path
from consilia.cli.demo.plan import Plan
from consilia.cli.demo.run import run
from consilia.cli.output import Format

plan = Plan(hospitals=2, rounds=1, local_epochs=1.0, image_size=64, learning_rate=0.001, batch_size=4,
            detector="faster-rcnn", seed=0, data=None, application="CT", phantom_patients=2)
home = Path(sys.argv[1])
home.mkdir()
run(home, plan, Format.JSON)
"""


def test_the_demo_ends_with_a_second_opinion_and_the_report_shows_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(home)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((home / "report.json").read_text())
    asked = report["consultation"]
    # one round on two patients teaches nothing: the audit is there to find that out
    assert asked["outcome"] in ("answer", "failed") and asked["audits"] == 20 and asked["images"] == 32
    assert {"Asked", "Answered", "AuditOpened", "Scored"} <= {item["step"] for item in asked["transactions"]}
    assert ("no diagnosis" in (home / "report.html").read_text()) == (asked["outcome"] == "failed")
    assert report["ledger"]["confirmations"] == 2 and len(report["ledger"]["contracts"]) == 5
    server = next(row for row in report["roles"] if row["role"] == "server")
    assert any("second opinion" in text["en"] for text in server["could_see"])
    assert audit(home).returncode == 0
