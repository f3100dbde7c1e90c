"""The benchmark runs, and would notice a wrong average."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import answering, ballast, training_speed
from consilia.detection.training import Trainer

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


@pytest.mark.slow
@pytest.mark.network
def test_a_small_model_goes_once_round(tmp_path):
    figures_file = tmp_path / "figures.json"
    command = [
        sys.executable,
        str(RUN),
        "--only",
        "rounds",
        "--megabytes",
        "0.1",
        "--rounds",
        "1",
        "--hospitals",
        "2",
    ]
    done = subprocess.run(
        [*command, "--json", str(figures_file)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    plain, real = json.loads(figures_file.read_text())["measured"]
    assert (plain["job"], real["job"]) == ("plain_loop", "consortium")
    assert len(real["round_seconds"]) == 1
    # the launcher, the server, and for each hospital its process, its node and its search
    assert real["processes"] == 2 + 3 * 2
    assert {"hospitals", "nodes", "proof of work", "server"} <= set(real["cpu_seconds"])
    assert real["peak_rss_mb"] > real["peak_pss_mb"] > plain["peak_pss_mb"]
    assert "over the loop" in done.stdout


def test_the_expected_average_is_the_weighted_one():
    # (10 * 1e-3 + 20 * 2e-3 + 30 * 3e-3) / 60 a round
    assert ballast.expected_value([1, 2, 3], 1) == pytest.approx(140e-3 / 60, rel=1e-6)
    assert ballast.expected_value([1, 2, 3], 4) == pytest.approx(4 * 140e-3 / 60, rel=1e-6)


@pytest.mark.parametrize("place", [0, -1])
def test_one_wrong_bit_fails_the_benchmark(place):
    expected = ballast.expected_value([1, 2], 3)
    tensors = [np.full(100, expected), np.full(7, expected)]
    ballast.require_exact(tensors, expected)
    tensors[1][place] = np.nextafter(expected, np.float32(1))
    with pytest.raises(AssertionError, match="expected every weight"):
        ballast.require_exact(tensors, expected)


def test_the_ballast_has_the_size_asked_for():
    shapes = ballast.ballast_shapes(160)
    assert sum(shape[0] for shape in shapes.values()) == 40_000_000
    assert max(shapes.values()) == (655_360,)


def test_envelopes_are_measured_beside_their_parts(tmp_path):
    command = [sys.executable, str(RUN.parent / "envelope.py"), "--megabytes", "0.5"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "rates.json")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rates = {rate["job"]: rate for rate in json.loads((tmp_path / "rates.json").read_text())}
    assert {"SHA-256, every core", "seal", "open", "check", "age encrypt", "age decrypt"} <= rates.keys()
    # sealing takes the cipher's time, and the hash's, and more
    assert rates["seal"]["cpu_seconds"] > rates["AES-256-GCM, one core"]["cpu_seconds"]


def test_the_bare_loop_gets_the_very_batches_that_the_trainer_draws(monkeypatch):
    """Otherwise the ratio of the two would compare different work."""
    drawn, given = [], []
    honest_step, honest_loop = Trainer._step, training_speed._bare_loop
    monkeypatch.setattr(
        Trainer, "_step", lambda self, batch, *rest: (drawn.append(batch), honest_step(self, batch, *rest))[1]
    )
    monkeypatch.setattr(
        training_speed,
        "_bare_loop",
        lambda bare, batches: (given.extend(batches), honest_loop(bare, batches))[1],
    )
    speed = training_speed.measure(image_size=64, batch_size=2, steps=1, turns=1)
    assert len(drawn) == len(given) == 2
    for (images, targets), (others, other_targets) in zip(drawn, given, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True))
        assert all(
            torch.equal(a[name], b[name]) for a, b in zip(targets, other_targets, strict=True) for name in a
        )
    assert speed.images_a_turn == 2
    assert 0 < speed.ratio < 20


def test_a_query_through_the_diagnoser_finds_what_a_bare_loop_finds():
    # inside, it asserts that both ways see the same; the ratio is the benchmark's to tell, on a quiet machine
    speed = answering.measure(image_size=64, turns=1)
    assert speed.images == 32 and speed.ratio > 0
