"""`consilia demo` as a person runs it: to its end, again in the same home, interrupted, and killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.e2e.running import ROOT, audit

pytestmark = [pytest.mark.network, pytest.mark.slow]

PATIENCE_SECONDS = 500.0
SIDE = 96


def write_discs(folder: Path) -> Path:
    """24 images of 12 patients, one or two bright discs in noise on each, as a COCO folder."""
    random = np.random.default_rng(0)
    folder.mkdir()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images, annotations = [], []
    for number in range(24):
        pixels = random.normal(60, 10, (SIDE, SIDE))
        name = f"slice-{number:02d}.png"
        images.append(
            {"id": number, "file_name": name, "width": SIDE, "height": SIDE, "patient": f"p{number // 2:02d}"}
        )
        for _ in range(1 + number % 2):
            radius = int(random.integers(8, 16))
            x, y = (int(random.integers(radius, SIDE - radius)) for _ in range(2))
            pixels[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] += 120
            box = [x - radius, y - radius, 2 * radius, 2 * radius]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": box,
                    "area": 1,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("data") / "discs")


def command(home: Path, data: Path, *more: str) -> list[str]:
    options = [
        "--hospitals",
        "2",
        "--rounds",
        "1",
        "--local-epochs",
        "1",
        "--image-size",
        "64",
        "--format",
        "json",
    ]
    return [
        sys.executable,
        "-m",
        "consilia",
        "demo",
        "--home",
        str(home),
        "--data",
        str(data),
        *options,
        *more,
    ]


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process that has this home on its command line, and their children."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline"]):
        if any(str(home) in part for part in process.info["cmdline"] or ()):
            found[process.pid] = process
            found |= {child.pid: child for child in process.children(recursive=True)}
    return list(found.values())


@contextmanager
def running(home: Path, data: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo in the background; whatever a failed test leaves of it is ended."""
    process = subprocess.Popen(
        command(home, data), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        for left in [psutil.Process(process.pid)] if process.poll() is None else []:
            left.kill()
        process.wait()
        for left in processes_of(home):
            left.kill()


def wait_for(process: subprocess.Popen[str], step: str) -> None:
    """Read what the demo prints until it says a step."""
    assert process.stdout
    for line in process.stdout:
        if json.loads(line)["step"] == step:
            return
    assert process.stderr
    pytest.fail(f"the demo never said {step!r}: {process.stderr.read()[-800:]}")


def gone(home: Path) -> bool:
    """Whether all processes of a home end within a while."""
    deadline = time.monotonic() + 60
    while processes_of(home) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not processes_of(home)


def test_a_demo_from_beginning_to_end_and_never_twice(tmp_path: Path, discs: Path) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        command(home, discs), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert gone(home)
    report = json.loads((home / "report.json").read_text())
    assert {"results", "rounds", "seconds", "bytes", "ledger", "rewards"} <= report.keys()
    results = report["results"]
    assert len(results["local_only"]) == 2
    for score in (results["federated"], results["pooled"], *results["local_only"]):
        assert all(0 <= score[name] <= 1 for name in ("map50", "map", "cpm"))
    assert len(report["rounds"]) == 1
    assert (home / "report.html").stat().st_size > 10_000
    assert audit(home).returncode == 0
    before = (home / "report.json").read_bytes()
    again = subprocess.run(
        command(home, discs), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert again.returncode == 2 and "finished run" in again.stderr
    assert (home / "report.json").read_bytes() == before


def test_ctrl_c_stops_every_process_and_the_next_run_goes_on(tmp_path: Path, discs: Path) -> None:
    home = tmp_path / "home"
    with running(home, discs) as demo:
        wait_for(demo, "enrolled")
        assert len(processes_of(home)) > 4
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=90)
        assert demo.returncode != 0
        assert gone(home), processes_of(home)
        other = subprocess.run(
            command(home, discs, "--seed", "9"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert other.returncode == 2 and "seed" in other.stderr
        done = subprocess.run(
            command(home, discs), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert audit(home).returncode == 0


def test_a_demo_that_was_killed_leaves_nobody_and_goes_on(tmp_path: Path, discs: Path) -> None:
    home = tmp_path / "home"
    with running(home, discs) as demo:
        wait_for(demo, "training")
        demo.kill()
        demo.communicate()
        assert gone(home), [process.cmdline() for process in processes_of(home)]
        done = subprocess.run(
            command(home, discs), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert audit(home).returncode == 0


def test_two_demos_in_one_home_are_one_too_many(tmp_path: Path, discs: Path) -> None:
    home = tmp_path / "home"
    with running(home, discs) as demo:
        wait_for(demo, "home")
        other = subprocess.run(
            command(home, discs), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert other.returncode == 2 and "another demo is running" in other.stderr
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=90)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "no-such"], "model.detector: expected one of"),
        (["--hospitals", "1"], "--hospitals"),
        (["--data", "/nowhere"], "--data"),
    ],
)
def test_wrong_use_has_exit_code_2(tmp_path: Path, discs: Path, options: list[str], message: str) -> None:
    done = subprocess.run(
        command(tmp_path / "home", discs, *options), cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_home_with_something_else_is_left_alone(tmp_path: Path, discs: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    done = subprocess.run(command(tmp_path, discs), cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2 and "not empty" in done.stderr
    assert (tmp_path / "letter.txt").read_text() == "dear"
