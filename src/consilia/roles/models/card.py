"""A model card (Mitchell et al. 2019) filled from the ledger: its purpose, who trained it on how much, its limits."""

from __future__ import annotations

from typing import Any

from consilia.errors import InputError
from consilia.protocols.task_spec import TaskSpec
from consilia.roles.audit.trace import is_included
from consilia.roles.audit.view import LedgerView
from consilia.roles.models.catalogue import RegisteredModel, read_tasks
from consilia.roles.training.task_log import TaskLog
from consilia.values import Address

LIMITS = (
    "For research. No medical device, not for decisions about patients.",
    "Boxes on single two-dimensional images; it knows nothing of earlier studies or of the patient.",
    "Numbers of examples are what each hospital registered; the ledger cannot know whether they are true.",
    "A score is no probability of disease; how far it is off is under calibration, where that was measured.",
    "On scanners, populations and findings other than those it was trained on it may fail without a sign.",
)

LOCAL_NORM = (
    "Normalisation layers stay at each hospital (`local_norm`): this file alone is no whole detector."
)


def model_card(view: LedgerView, model: RegisteredModel, measured: dict[str, Any] | None) -> dict[str, Any]:
    """The card of a registered model as a document.

    Args:
        view: the ledger.
        model: the model.
        measured: what `consilia model eval` wrote about this very model, or None.

    Raises:
        InputError: the measurement is of another model, or of one without its normalisation layers.
    """
    digest = str(model.artifact.digest)
    task = read_tasks(view)[model.task_id]
    spec = task.spec
    if measured is not None:
        _check_measured(measured.get("model", {}), model, spec)
    return {
        "title": spec.title,
        "digest": digest,
        "root": str(model.artifact.root),
        "purpose": spec.purpose.model_dump(mode="json"),
        "detector": spec.model.detector,
        "backbone": spec.model.backbone,
        "image_size_px": spec.model.image_size,
        "categories": list(spec.data.categories),
        "training": {
            "task": model.number,
            "task_id": str(model.task_id),
            "spec_digest": str(spec.digest),
            "initial_digest": spec.model.initial_digest,
            "pretrained_digest": spec.model.pretrained_digest,
            "rounds_done": model.rounds_done,
            "rounds_planned": spec.training.rounds,
            "aggregation": spec.training.aggregation,
            "privacy": spec.training.privacy,
            "local_norm": spec.training.local_norm,
            "augmentation": spec.training.augmentation,
        },
        "hospitals": _hospitals(view, task, model.rounds_done),
        "registered": {
            "chain_id": view.ledger.deployment.chain_id,
            "contract": view.ledger.deployment.training,
            "block": model.deed.block_number,
            "timestamp": model.deed.timestamp,
            "transaction": f"0x{model.deed.transaction}",
            "by": model.deed.by.name or model.deed.by.address,
        },
        "measured": measured,
        "limits": list(LIMITS),
    }


def _check_measured(measured: dict[str, Any], model: RegisteredModel, spec: TaskSpec) -> None:
    if measured.get("digest") != str(model.artifact.digest):
        raise InputError("expected a measurement of this model, its digest is another: measure this one")
    if spec.training.local_norm and model.rounds_done and not measured.get("own_norm"):
        raise InputError(
            "expected a measurement with a hospital's own normalisation layers (training.local_norm), this one was "
            "made without: measure again in that hospital's home"
        )


def _hospitals(view: LedgerView, task: TaskLog, rounds_done: int) -> list[dict[str, Any]]:
    """Who contributed to the first `rounds_done` rounds: updates in the average, and the examples behind one."""
    updates: dict[Address, list[int]] = {}
    for current in task.rounds[:rounds_done]:
        for update in current.updates:
            if is_included(task, update):
                updates.setdefault(update.hospital, []).append(update.num_examples)
    return [
        {
            "hospital": view.account(account).name or account,
            "account": account,
            "updates_in_the_average": len(examples),
            "examples": max(examples),
        }
        for account, examples in updates.items()
    ]


def card_markdown(card: dict[str, Any]) -> str:
    """The card for a person."""
    training, registered = card["training"], card["registered"]
    lines = [
        f"# {_plain(card['title'])}",
        "",
        f"Model `{card['digest']}` ({_detector(card)}, {card['image_size_px']} px), after {training['rounds_done']} "
        f"of {training['rounds_planned']} rounds of task {training['task']}.",
        "",
        "## What it is for",
        "",
        *(f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in card["purpose"].items()),
        f"- finds: {', '.join(_plain(name) for name in card['categories'])}",
        "",
        "## Who trained it",
        "",
        "| hospital | updates in the average | examples |",
        "|---|---|---|",
        *(
            f"| {_plain(row['hospital'])} | {row['updates_in_the_average']} | {row['examples']} |"
            for row in card["hospitals"]
        ),
        "",
        f"Aggregation {training['aggregation']}, privacy {training['privacy']}, "
        f"augmentation {training['augmentation']}. TaskSpec `{training['spec_digest']}`, "
        f"initial model `{training['initial_digest']}`{_pretrained(training['pretrained_digest'])}.",
        *([LOCAL_NORM] if training["local_norm"] else []),
        "",
        "## How good it is",
        "",
        *_measured(card["measured"]),
        "",
        "## Where the ledger has it",
        "",
        f"Chain {registered['chain_id']}, contract `{registered['contract']}`, block {registered['block']}, "
        f"transaction `{registered['transaction']}`, by {_plain(registered['by'])}; sealed as `{card['root']}`. "
        "`consilia model verify` checks it, `consilia audit verify` derives it again.",
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in card["limits"]),
    ]
    return "\n".join(lines) + "\n"


def _detector(card: dict[str, Any]) -> str:
    return f"{card['detector']} on {card['backbone']}" if card["backbone"] else str(card["detector"])


def _pretrained(digest: str) -> str:
    return f" with pretrained weights of the file `{digest}`" if digest else ""


def _measured(measured: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return ["Not measured here. `consilia model eval --to FILE.json`, then `--measured FILE.json`."]
    size = told_size(measured["patients"], measured["images"], measured["lesions"])
    lines = [
        f"{size}; 95 % bootstrap intervals over {_plain(measured.get('intervals', {}).get('over', 'patients'))}.",
        "",
        "| figure | value | interval |",
        "|---|---|---|",
    ]
    for key, name in (("map50", "mAP@.5"), ("map", "mAP@[.5:.95]"), ("cpm", "CPM")):
        bounds = measured.get(f"{key}_interval")
        shown = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "too few patients"
        lines.append(f"| {name} | {measured[key]:.3f} | {shown} |")
    if not measured.get("leak_checked"):
        lines += [
            "",
            "Leak not checked: nobody held these images against what the model was trained on; it may have seen them.",
        ]
    if own_norm := measured.get("model", {}).get("own_norm"):
        lines += [
            "",
            f"With one hospital's own normalisation layers, `{own_norm}`; others' give other figures.",
        ]
    worst = measured.get("worst_hospital")
    return [*lines, "", f"Worst hospital: {_plain(worst)}." if worst else "Not measured by hospital."]


def told_size(patients: int | None, images: int, lesions: int) -> str:
    """What was measured on; None for patients where the data do not tell whose the images are."""
    whose = "patients unknown" if patients is None else counted(patients, "patient")
    return f"{whose}, {counted(images, 'image')}, {counted(lesions, 'lesion')}"


def counted(number: int, word: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def _plain(text: object) -> str:
    """A text from the ledger as one line without Markdown: anybody may have written it."""
    line = " ".join(str(text).split())
    for character in "\\`*_[]<>|#":
        line = line.replace(character, f"\\{character}")
    return line
