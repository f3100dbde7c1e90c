"""`consilia demo`: a whole consortium on one machine, and a report of whether joining it was worth it."""

from __future__ import annotations

from pathlib import Path

import typer

from consilia.cli.output import Format


def demo(
    hospitals: int = typer.Option(
        4, min=2, max=16, help="How many hospitals, each a process with a node of its own."
    ),
    rounds: int = typer.Option(0, min=0, help="Rounds of training; 0 takes the preset of the data."),
    local_epochs: float = typer.Option(
        0.0, min=0.0, help="Passes of a hospital over its images in a round; 0 takes the preset."
    ),
    image_size: int = typer.Option(0, min=0, help="Longer side of the images in pixels; 0 takes the preset."),
    batch_size: int = typer.Option(0, min=0, help="Images a step; 0 takes the preset."),
    data: Path | None = typer.Option(
        None,
        exists=True,
        file_okay=False,
        help="Real images instead of phantom CT: a COCO, VOC or DICOM folder.",
    ),
    application: str = typer.Option("CT", help="The modality that the task names, CT or microscopy."),
    detector: str = typer.Option(
        "faster-rcnn",
        help="r-cnn, spp-net, fast-rcnn, faster-rcnn, yolo, yolo-small, ssd, retinanet, or an installed one.",
    ),
    backbone: str = typer.Option(
        "",
        help="cnn, resnet-10, resnet-18, resnet-50, mobilenet, darknet-53 or darknet-small; "
        "default: the detector's own.",
    ),
    home: Path | None = typer.Option(None, help="Where everything goes; default: a new folder in demo-home."),
    seed: int = typer.Option(0, min=0, help="Equal seeds make equal phantoms, splits and first weights."),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Hospitals and a server train a detector together through a real chain; then read the report."""
    from consilia.cli.demo.plan import Plan, next_home
    from consilia.cli.demo.run import run
    from consilia.detection.detectors import require_known
    from consilia.detection.presets import CT_HEMORRHAGE, PHANTOM, PRESETS

    require_known(detector, backbone)
    preset = PRESETS.get(data.resolve().name, CT_HEMORRHAGE) if data else PHANTOM
    plan = Plan(
        hospitals=hospitals,
        rounds=rounds or preset.rounds,
        local_epochs=local_epochs or preset.local_epochs,
        image_size=image_size or preset.image_size,
        learning_rate=preset.learning_rate,
        batch_size=batch_size or preset.batch_size,
        detector=detector,
        backbone=backbone,
        seed=seed,
        data=data.resolve() if data else None,
        application=application,
        phantom_patients=12,
    )
    run(home or next_home(Path("demo-home")), plan, output)
