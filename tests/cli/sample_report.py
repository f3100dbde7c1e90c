"""A report as a run of four hospitals leaves it, for the tests to draw: no figure in it is a result."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from consilia.cli.report import report as r
from consilia.cli.report import results as rs
from consilia.cli.report.roles import sights_of_a_run

HOSPITALS = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
SCANNERS = (
    ("Aurelia", "A64 soft"),
    ("Borealis", "B16 sharp"),
    ("Cantor", "C128 low dose"),
    ("Delta", "D32 soft"),
)
FALSE_POSITIVES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def sample_report(*, images: int = 2) -> r.Report:
    """A whole report with `images` example slices, one rejected, one late and one missing update."""
    federated, pooled = _score(0.842, 0.371, 4800), _score(0.859, 0.392, 4800)
    local = tuple(
        rs.LocalScore(hospital=name, **_score(map50, map50 * 0.4, 1200).model_dump())
        for name, map50 in zip(HOSPITALS, (0.713, 0.654, 0.702, 0.588), strict=True)
    )
    store = r.StoreSight(objects=36, envelopes=36, bytes=334_500_000)
    return r.Report(
        command="consilia demo --hospitals 4 --rounds 6 --seed 7 --home demo-home",
        started_at=datetime(2026, 11, 22, 22, 38, tzinfo=UTC),
        versions={"consilia": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "py-evm": "0.12.1b1"},
        machine=r.Machine(cpu_count=2, memory_bytes=8_300_000_000, platform="Linux x86_64"),
        seed=7,
        detector="faster-rcnn",
        data_source="phantom CT",
        held_out=r.HeldOut(patients=24, images=192, lesions=131),
        hit_rule=r.HitRule(kind="iou", min_iou=0.3),
        results=rs.Results.of(federated, pooled, local, _differences()),
        rounds=tuple(_round(index) for index in range(1, 7)),
        seconds=r.Seconds(
            setup=1.84,
            data=21.3,
            start_up=9.72,
            enrol=6.1,
            rounds=243.9,
            settle=4.4,
            yardsticks=171.2,
            evaluation=34.6,
            audit=5.2,
            total=498.3,
        ),
        bytes=r.Bytes(
            models=65_200_000, updates=214_000_000, key_strings=1_812, other=9_310, chain=3_410_000
        ),
        ledger=_ledger(),
        rewards=_rewards(),
        data=_data(),
        store=store,
        roles=sights_of_a_run(store, consulted=False),
        examples=tuple(_example(index) for index in range(images)),
        audit=r.Audit(
            command="consilia audit verify --home demo-home", exit_code=0, models_rederived=6, seconds=5.2
        ),
    )


def _differences() -> rs.Differences:
    gain, loss = rs.Interval(low=0.102, high=0.254), rs.Interval(low=-0.048, high=0.011)
    return rs.Differences(
        map50_minus_mean_local=gain,
        map_minus_mean_local=gain,
        cpm_minus_mean_local=gain,
        map50_minus_pooled=loss,
        map_minus_pooled=loss,
        cpm_minus_pooled=loss,
    )


def _score(map50: float, mean_ap: float, steps: int) -> rs.Score:
    sensitivities = [min(1.0, map50 * (0.55 + 0.5 * (i / 7) ** 0.6)) for i in range(8)]
    return rs.Score(
        map50=map50,
        map=mean_ap,
        map50_interval=rs.Interval(low=map50 - 0.061, high=min(1.0, map50 + 0.048)),
        map_interval=rs.Interval(low=mean_ap - 0.04, high=mean_ap + 0.05),
        cpm_interval=rs.Interval(low=map50 - 0.1, high=map50),
        cpm=sum(sensitivities[1:]) / 7,
        froc=tuple(zip(FALSE_POSITIVES, sensitivities, strict=True)),
        training_steps=steps,
        seconds=steps / 28,
        by_hospital=tuple(
            rs.SiteScore(hospital=name, map50=map50 - 0.03 * i, map=mean_ap, cpm=map50 * 0.9)
            for i, name in enumerate(HOSPITALS)
        ),
    )


def _round(index: int) -> r.Round:
    fates: dict[tuple[int, int], tuple[r.Status, str]] = {
        (2, 3): ("late", "registered in block 31, the round closed in block 30"),
        (3, 1): ("rejected", "norm 812.4 is above the bound of 50"),
        (4, 2): ("missing", ""),
    }
    updates = []
    for i, name in enumerate(HOSPITALS):
        status, reason = fates.get((index, i), ("included", ""))
        sent = status != "missing"
        updates.append(
            r.Update(
                hospital=name,
                status=status,
                reason=reason,
                num_examples=(128, 96, 150, 84)[i] if sent else 0,
                loss=1.9 / (index + 0.4 * i + 0.6) if sent else None,
                bytes=9_310_000 if sent else 0,
                seconds=34.2 + i if sent else 0.0,
            )
        )
    return r.Round(
        round_index=index,
        map50=0.842 * (1 - 0.62 ** (index + 0.6)) / (1 - 0.62**6.6),
        map=0.371 * (1 - 0.62**index),
        cpm=0.8 * (1 - 0.6**index),
        updates=tuple(updates),
        seconds=39.6 + index / 3,
        bytes=46_700_000,
        block_opened=index * 11,
        block_closed=index * 11 + 8,
    )


def _ledger() -> r.Ledger:
    miners = tuple(
        r.Miner(hospital=name, account=_address(i), blocks=blocks, reward_wei=blocks * 2 * 10**18)
        for i, (name, blocks) in enumerate(zip(HOSPITALS, (24, 19, 17, 22), strict=True))
    )
    return r.Ledger(
        chain_id=7_340_001,
        height=82,
        head="0x00004f" + "9a" * 29,
        blocks_by_miner=miners,
        block_rewards_wei=164 * 10**18,
        transactions=71,
        gas_used=9_412_377,
        reorgs=2,
        contracts=r.Contracts(
            registry=_address(11),
            training=_address(12),
            escrow=_address(13),
            exchange=_address(14),
            diagnosis=_address(15),
        ),
        confirmations=3,
    )


def _rewards() -> tuple[r.Reward, ...]:
    return tuple(
        r.Reward(
            hospital=name,
            account=_address(i),
            num_examples=(768, 480, 750, 504)[i],
            share_wei=(307_000_000, 191_846_522, 299_760_191, 201_393_287)[i] * 10**9 * 10,
            claimed=i != 3,
            block_reward_wei=(24, 19, 17, 22)[i] * 2 * 10**18,
        )
        for i, name in enumerate(HOSPITALS)
    )


def _data() -> tuple[r.HospitalData, ...]:
    skipped = (
        r.SkippedStudy(
            name="P017/IM0004.dcm", reason="pixel data is truncated: expected 131072 bytes, got 90112"
        ),
        r.SkippedStudy(name="P021", reason="no axial series <with> annotations"),
    )
    return tuple(
        r.HospitalData(
            hospital=name,
            manufacturer=maker,
            scanner=scanner,
            patients=(16, 12, 19, 11)[i],
            images=(128, 96, 150, 84)[i],
            lesions=(91, 60, 117, 44)[i],
            studies_used=(16, 12, 19, 11)[i],
            studies_skipped=2 if i == 1 else 0,
            skipped=skipped if i == 1 else (),
        )
        for i, (name, (maker, scanner)) in enumerate(zip(HOSPITALS, SCANNERS, strict=True))
    )


def _example(index: int) -> r.Example:
    size, lesion = 256, (150.0, 90.0, 174.0, 112.0)
    near = (148.0, 92.0, 175.0, 113.0)
    return r.Example(
        patient=f"P{index + 31:03d}",
        hospital=HOSPITALS[index % 4],
        width=size,
        height=size,
        window="HU 40 ± 200",
        image_png_base64=r.png_base64(_slice(size, index)),
        truth=(r.Box(xyxy=lesion, label="lesion"),),
        predictions=(
            r.Prediction(model="federated", boxes=(r.Box(xyxy=near, score=0.93, label="lesion"),)),
            r.Prediction(model="pooled", boxes=(r.Box(xyxy=near, score=0.88, label="lesion"),)),
            r.Prediction(
                model="local",
                hospital=HOSPITALS[0],
                boxes=(r.Box(xyxy=(80.0, 150.0, 102.0, 170.0), score=0.41, label="lesion"),),
            ),
        ),
    )


def _slice(size: int, seed: int) -> np.ndarray:
    """A body with two lungs, a spine and a lesion, in noise: enough to judge how boxes look on a slice."""
    y, x = np.mgrid[0:size, 0:size].astype(float)

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    image = np.zeros((size, size))
    image[ellipse(128, 132, 112, 84)] = 135
    image[ellipse(82, 122, 38, 54)] = 32
    image[ellipse(174, 122, 38, 54)] = 32
    image[ellipse(128, 190, 15, 15)] = 235
    image[ellipse(162, 101, 11, 10)] = 140
    image += np.random.default_rng(seed).normal(0, 7, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def _address(index: int) -> str:
    return "0x" + f"{index + 17:02x}" * 20
