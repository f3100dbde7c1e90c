"""From a study to a query: which model is asked, what hides the case, and what is spent for it.

The draw and the spent images are on disk before anybody sees them. A crash goes on with the same draw: another one
around the same case would show which image stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import numpy as np

from consilia.errors import ArchiveError, InputError, PolicyError
from consilia.imaging.canonical import CanonicalImage, read_canonical, shows_text
from consilia.imaging.cases import LabelledImage, WindowHU, patient_key, study_key, window_for
from consilia.imaging.covers import Draw, draw, matched
from consilia.imaging.separability import Separability, Verdict, separability
from consilia.ledger.diagnosis import ASK_GAS
from consilia.ledger.sender import TIP_WEI
from consilia.protocols.assurance import Assurance
from consilia.protocols.consultation import Offer
from consilia.protocols.diagnosis import ImageRole, QueryImage
from consilia.protocols.findings import MAX_FINDINGS, Finding
from consilia.protocols.task_spec import TaskSpec, parse_bytes
from consilia.roles.diagnosis.consultation import Consultation
from consilia.roles.state import ConsultedImage, State
from consilia.roles.training.task_log import TaskLog
from consilia.roles.training.windows import window_of
from consilia.values import Digest


@dataclass(frozen=True)
class Prepared:
    """A query that can be asked."""

    images: tuple[QueryImage, ...]
    hiding: tuple[Separability, ...]
    """The membership check, for each real case."""
    sources: tuple[tuple[str, str, tuple[float, float]], ...]
    """Of each real case its name, its file, and canonical by original size, across and down."""
    asked_before: tuple[str, ...]
    """The real cases whose patient was in an earlier query: two queries that have a patient in common show it."""
    name: str
    """Of the real cases' pixels; what was asked under it is asked once."""


def spec_of(offer: Offer, tasks: dict[int, TaskLog], state: State, own: TaskSpec | None = None) -> TaskSpec:
    """The TaskSpec of the model on offer: it says how images are windowed and what the codes mean.

    That of the server's task which registered the model, or `own`, which the server gave to this hospital, or that of
    the first task of another server; once one was taken it stays the one.

    Raises:
        InputError: there is none, or its codes or its image size are not the offer's.
    """
    kept = state.fact(_spec_name(offer))
    if kept is not None:
        return parse_bytes(kept.encode())
    registered = [
        task
        for task in tasks.values()
        if offer.model_digest in {current.closed.model_digest for current in task.rounds if current.closed}
    ]
    # anybody may close a round with another's model, under a spec that shows it images otherwise
    by_itself = [task for task in registered if task.published.server == offer.server]
    found = own
    if by_itself or (own is None and registered):
        found = (by_itself or registered)[0].spec
    if found is None:
        raise InputError(
            f"no task of this ledger has registered the model {offer.model_digest}: get its TaskSpec from the server "
            "and give it with --spec, or ask another offer"
        )
    size, offered = found.model.image_size, offer.described.image_format
    if found.code_book.digest != offer.code_book or (offered.height, offered.width) != (size, size):
        raise InputError(
            f"expected a TaskSpec with the offer's codes and {offered.height} x {offered.width} pixels, it has "
            f"{size} x {size} and {'the same' if found.code_book.digest == offer.code_book else 'other'} codes"
        )
    return found


def _spec_name(offer: Offer) -> str:
    return f"consult/spec/{offer.model_digest}/{offer.code_book}"


def read_study(path: Path, spec: TaskSpec) -> list[list[LabelledImage]]:
    """The real cases of a DICOM file, a folder of DICOM or a picture: for each patient its slices, the asked one first.

    Of a folder the middle slice of each patient is asked; the others are its neighbours.

    Raises:
        DatasetError: nothing there is usable.
        InputError: there is nothing.
    """
    from consilia.imaging.readers import read_dicom

    window = window_of(spec)
    if path.is_dir():
        by_patient: dict[str, list[LabelledImage]] = {}
        for image in read_dicom(path, window=window).images:
            by_patient.setdefault(image.patient, []).append(image)
        middle = [(len(slices) // 2, slices) for slices in by_patient.values()]
        return [[slices[at], *slices[:at], *slices[at + 1 :]] for at, slices in middle]
    if not path.is_file():
        raise InputError(f"expected a DICOM file, a folder or a PNG, there is no {path.name}")
    return [[_read_one(path, window)]]


def _read_one(path: Path, window: WindowHU | None) -> LabelledImage:
    from consilia.imaging.dicom import read_ct
    from consilia.imaging.dicom_file import is_dicom
    from consilia.imaging.raster import read_raster

    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    if not is_dicom(path):
        height, width = read_raster(path).shape[:2]
        key = f"image:{path.name}"
        return LabelledImage(path.name, patient_key(key), study_key(key), width, height, *none, None, path)
    ct = read_ct(path)
    height, width = ct.hu.shape
    patient = patient_key(ct.patient_id or f"image:{path.name}")
    return LabelledImage(
        ct.sop_instance_uid,
        patient,
        study_key(ct.study_uid),
        width,
        height,
        *none,
        ct.spacing_mm,
        path,
        window or window_for(ct.body_part),
        acquisition=ct.acquisition,
    )


def prepare_query(
    cases: Sequence[Sequence[LabelledImage]],
    archive: Sequence[LabelledImage],
    spec: TaskSpec,
    assurance: Assurance,
    state: State,
    *,
    text_is_harmless: bool = False,
    missing_wei: int = 0,
) -> Prepared:
    """Draw what hides these cases, check that it does, and spend it.

    Args:
        text_is_harmless: a person has looked at what looks like text in a case.
        missing_wei: what the account lacks of the fee; a case that was drawn before goes on all the same.

    Raises:
        ArchiveError: the archive is too small, or the cases can be told from it.
        HomeError: an image was in a query before.
        InputError: more cases than one query hides, or no money for it.
        PolicyError: a case may show a name.
    """
    size = spec.model.image_size
    real = [slices[0] for slices in cases]
    names = _names(real)
    _check_count(len(real), assurance)
    if not text_is_harmless:
        _check_text(real, names)
    own = [[read_canonical(image, size) for image in slices[:5]] for slices in cases]
    name = _name_of([seen[0] for seen in own])
    kept = state.fact(f"consult/drawn/{name}")
    if kept is None and missing_wei > 0:
        raise InputError(f"the account lacks {missing_wei} wei for the fee and the gas; nothing was spent")
    known = [image for image in archive if len(image.labels) <= MAX_FINDINGS]
    fitting, _ = matched(real, known, {})
    seen = {image.image_id: read_canonical(image, size) for image in fitting}
    if kept is None:
        drawn = _draw(real, known, _used(seen, [case[0] for case in own], state), assurance)
        chosen = [[image.image_id for image in part] for part in (drawn.audits, drawn.covers)]
    else:
        chosen = json.loads(kept)
    hiding = _check(own, fitting, seen, len(real) + len(chosen[1]))
    by_id = {image.image_id: image for image in fitting}
    if any(key not in by_id for part in chosen for key in part):
        raise ArchiveError(
            "images of the draw are gone from the archive; put them back, the case was drawn with them"
        )
    roles = [(ImageRole.AUDIT, key) for key in chosen[0]] + [(ImageRole.COVER, key) for key in chosen[1]]
    earlier = {item.patient for item, query in state.consulted().values() if query != name}
    if kept is None:
        claims = [_spent(case[0], image, ImageRole.REAL) for case, image in zip(own, real, strict=True)]
        claims += [_spent(seen[key], by_id[key], role) for role, key in roles]
        state.claim_images(name, claims)
        state.remember(f"consult/drawn/{name}", json.dumps(chosen))
    images = [
        QueryImage(case, ImageRole.REAL, found[0].pixels.tobytes())
        for case, found in zip(names, own, strict=True)
    ]
    images += [_query_image(role, by_id[key], seen[key], spec) for role, key in roles]
    sources = tuple(
        (case, str(image.path.resolve()), found[0].scale_xy)
        for case, image, found in zip(names, real, own, strict=True)
    )
    again = tuple(case for case, image in zip(names, real, strict=True) if image.patient in earlier)
    return Prepared(tuple(images), hiding, sources, again, name)


def _query_image(role: ImageRole, image: LabelledImage, seen: CanonicalImage, spec: TaskSpec) -> QueryImage:
    truth = truth_of(image, seen.scale_xy, spec, spec.model.image_size) if role is ImageRole.AUDIT else None
    return QueryImage(image.image_id, role, seen.pixels.tobytes(), truth)


def _name_of(real: Sequence[CanonicalImage]) -> str:
    """The same for the same cases, whatever size and window a model asks for."""
    return str(Digest.of(b"consilia/cases/v1" + b"".join(sorted(bytes(seen.source) for seen in real))))


def _check_count(cases: int, assurance: Assurance) -> None:
    """More would make the query larger than others, and its size would tell how many are real."""
    most = assurance.covers + 1
    if cases > most:
        raise InputError(
            f"expected at most {most} patients in one query of this assurance, the study has {cases}: "
            "ask in several folders"
        )


def _check_text(real: Sequence[LabelledImage], names: Sequence[str]) -> None:
    marked = [name for name, image in zip(names, real, strict=True) if shows_text(image)]
    if marked:
        raise PolicyError(
            f"{', '.join(marked)}: the image shows marks that look like text, or its header says that it has some "
            "(0028,0301); the server would see it. Look, and say --text-is-harmless where it names nobody"
        )


def _draw(
    real: Sequence[LabelledImage], known: Sequence[LabelledImage], used: set[str], assurance: Assurance
) -> Draw:
    """Draw until no image that would go out shows text."""
    left_out = dict.fromkeys(used, "used before")
    looked_at: set[str] = set()
    while True:
        drawn = draw(real, known, left_out, assurance.audits, assurance.covers, SystemRandom())
        fresh = [image for image in (*drawn.audits, *drawn.covers) if image.image_id not in looked_at]
        looked_at |= {image.image_id for image in fresh}
        marked = [image.image_id for image in fresh if shows_text(image)]
        if not marked:
            return drawn
        left_out |= dict.fromkeys(marked, "with marks that look like text")


def _used(seen: Mapping[str, CanonicalImage], real: Sequence[CanonicalImage], state: State) -> set[str]:
    """The images that were in a query before, or are the case, or a copy of another one, under whatever name."""
    taken = state.spent_marks().union(*((case.digest, *case.marks) for case in real))
    used = set()
    for key, image in seen.items():
        marks = {image.digest, *image.marks}
        if marks & taken:
            used.add(key)
        taken |= marks
    return used


def _spent(seen: CanonicalImage, image: LabelledImage, role: ImageRole) -> ConsultedImage:
    return ConsultedImage(seen.digest, image.patient, role.value, seen.marks)


def _names(real: Sequence[LabelledImage]) -> list[str]:
    """The cases' file names, told apart: folders of several patients number their slices alike."""
    names: list[str] = []
    for image in real:
        name, count = image.path.name, 2
        while name in names:
            name, count = f"{image.path.name} ({count})", count + 1
        names.append(name)
    return names


def _check(
    own: Sequence[Sequence[CanonicalImage]],
    fitting: Sequence[LabelledImage],
    seen: Mapping[str, CanonicalImage],
    hidden: int,
) -> tuple[Separability, ...]:
    archive = [seen[image.image_id].pixels for image in fitting]
    patients = [image.patient for image in fitting]
    found = tuple(separability([image.pixels for image in case], archive, patients, hidden) for case in own)
    worst = max(found, key=lambda item: item.guess)
    if any(item.verdict is Verdict.REFUSE for item in found):
        raise ArchiveError(
            f"the case stands out from its covers by its {worst.feature}: AUC {worst.auc:.2f}, a server's best guess "
            f"would be right in {worst.guess:.0%} of such queries. Take an archive of the same scanner and protocol"
        )
    return found


def truth_of(
    image: LabelledImage, scale_xy: tuple[float, float], spec: TaskSpec, size: int
) -> tuple[Finding, ...]:
    """The known findings of an archive image, in whole pixels of its canonical image, boxes outwards."""
    book = spec.code_book
    found = []
    for box, label in zip(image.boxes_xyxy, image.labels, strict=True):
        x1, y1, x2, y2 = (float(edge) * scale for edge, scale in zip(box, scale_xy * 2, strict=True))
        edges = (math.floor(x1), math.floor(y1), min(math.ceil(x2), size), min(math.ceil(y2), size))
        found.append(Finding(book.code_of(spec.data.categories[int(label) - 1]), edges))
    return tuple(found)


def missing_wei(consultation: Consultation, offer: Offer) -> int:
    """What this hospital's account lacks of an offer's price and the gas of a query, as far as one can tell before."""
    party = consultation.party
    return max(0, offer.price_wei + ASK_GAS * TIP_WEI - party.ledger.balance_wei(party.address))


def ask(
    consultation: Consultation,
    offer: Offer,
    prepared: Prepared,
    assurance: Assurance,
    spec: TaskSpec | None = None,
) -> Digest:
    """Ask, once: the same case again of the same offer is the same query. `spec` is kept for reading the answer.

    Raises:
        InputError: it was asked of another offer. A server that saw its audits opened would know them again, and two
            that compare two draws around one image would know that.
    """
    state = consultation.party.state
    first = state.remember_once(f"consult/offer/{prepared.name}", str(offer.offer_id))
    if first != str(offer.offer_id):
        raise InputError(
            f"this image was asked of offer {first} before, and is asked once ever: ask about another slice"
        )
    if spec is not None:
        state.remember_once(_spec_name(offer), spec.to_bytes().decode())
    key = f"consult/query/{prepared.name}"
    asked = state.fact(key)
    if asked is not None:
        return Digest.from_hex(asked)
    query_id = consultation.ask(offer.offer_id, prepared.images, assurance.required)
    state.remember(key, str(query_id))
    facts = [
        {"verdict": item.verdict.value, "auc": item.auc, "guess": item.guess, "feature": item.feature}
        for item in prepared.hiding
    ]
    state.remember(f"consult/hiding/{query_id}", json.dumps(facts))
    state.remember(f"consult/sources/{query_id}", json.dumps(prepared.sources))
    return query_id
