"""The end of a demo: one hospital asks for a second opinion on a patient whom no training saw."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from consilia.cli.output import Output
from consilia.cli.report.consultation import ConsultationReport
from consilia.imaging.phantom import SITES, write_phantom_hospital

PRICE_WEI, BOND_WEI = 10**16, 10**16
ANSWER_SECONDS = 5.0
SCORE_THRESHOLD = 0.5
ARCHIVE_PATIENTS = 48
"""One slice each: 31 for the query, and room for a mix of diagnoses."""
ASKER = "hospital-1"
TRIES = 10

OFFER = f"""
[diagnosis]
answer_seconds = {ANSWER_SECONDS}

[[diagnosis.offers]]
task = 1
price_wei = {PRICE_WEI}
bond_wei = {BOND_WEI}
score_threshold = {SCORE_THRESHOLD}
"""
"""What the demo's server adds to its settings."""


def write_archive(home: Path, seed: int) -> None:
    """Make the archive and the unseen case of the hospital that asks: its scanner, patients of their own.

    Training images would not do as audits: the model has seen them.
    """
    scanner = SITES[0].scanner
    # as many healthy slices as an archive needs beside the lesions, of both kinds
    lesions = replace(SITES[0].lesions, patients_with_lesion=0.65, haemorrhages=0.5)
    for name, patients, number in (("archive", ARCHIVE_PATIENTS, 900), ("unseen", 1, 901)):
        path = home / ASKER / name
        if not (path / "annotations.json").exists():
            write_phantom_hospital(
                path,
                scanner=scanner,
                lesions=lesions,
                patients=patients,
                slices_per_patient=1,
                seed=seed * 1000 + number,
            )


def consult(home: Path, say: Output) -> ConsultationReport | None:
    """Ask as a person would, while all parties are at work; None and a line that says why, where it was refused."""
    study = next((home / ASKER / "unseen" / "images").glob("*.dcm"))
    command = [sys.executable, "-m", "consilia", "consult", "ask", str(study), "--home", str(home / ASKER)]
    command += ["--archive", str(home / ASKER / "archive"), "--format", "json"]
    for _ in range(TRIES):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode != 2:  # the offer is not on the ledger yet
            break
        time.sleep(1.0)
    files = sorted((home / ASKER / "consultations").glob("*/consultation.json"))
    if not files:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"code {done.returncode}"
        say("no second opinion", reason=reason)
        return None
    shown = ConsultationReport.from_json(files[-1].read_text(encoding="utf-8"))
    say("second opinion", outcome=shown.outcome, matches=shown.matches, audits=shown.audits)
    return shown
