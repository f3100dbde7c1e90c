"""From a study to a query: the right images in the right roles, spent before they are seen, and the report after."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread

from consilia.cli.report.consulted import certificate_of, consultation_report
from consilia.errors import ArchiveError, HomeError, InputError, PolicyError
from consilia.imaging.canonical import read_canonical, shows_text
from consilia.imaging.cases import LabelledImage
from consilia.imaging.readers import read_dataset
from consilia.protocols.assurance import HIGH, STANDARD, Standing
from consilia.protocols.code_book import CodeBook, FindingCode
from consilia.protocols.consultation import Offer, OfferCard
from consilia.protocols.diagnosis import ImageFormat, ImageRole, QueryImage
from consilia.protocols.task_spec import parse_toml
from consilia.roles.diagnosis.asking import Prepared, ask, prepare_query, read_study, spec_of, truth_of
from consilia.roles.state import State
from consilia.roles.training.windows import window_of
from tests.cli.test_consult_command import write_slices
from tests.consortium import spec_toml
from tests.roles.asking import LESION, MODEL, Clinic, Seer, wrong_half
from tests.roles.asking import case as images_of
from tests.roles.asking import picture as toy_picture

SPEC = parse_toml(spec_toml(4))


def picture(folder, name, seed, lesion=False):
    random = np.random.default_rng(seed)
    pixels = random.normal(110, 5, (64, 64)).clip(0, 255).astype(np.uint8)
    pixels[:8] = pixels[-8:] = pixels[:, :8] = pixels[:, -8:] = 0
    boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    if lesion:
        pixels[20:30, 24:40] = 200
        boxes, labels = np.array([[24, 20, 40, 30]], np.float32), np.array([1])
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    return LabelledImage(name, f"patient-{name}", f"study-{name}", 64, 64, boxes, labels, None, path)


@pytest.fixture
def archive(tmp_path):
    return [picture(tmp_path, f"known-{number}", number, lesion=number % 2 == 1) for number in range(45)]


@pytest.fixture
def case(tmp_path):
    return picture(tmp_path, "case", 999)


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "state.sqlite")


def test_a_case_is_hidden_and_everything_is_spent_first(case, archive, state):
    prepared = prepare_query([[case]], archive, SPEC, STANDARD, state)
    roles = Counter(image.role for image in prepared.images)
    assert roles == {ImageRole.REAL: 1, ImageRole.AUDIT: 20, ImageRole.COVER: 11}
    assert {len(image.pixels) for image in prepared.images} == {64 * 64}
    for image in prepared.images:
        assert (image.truth is not None) == (image.role is ImageRole.AUDIT)
    truths = [image.truth for image in prepared.images if image.truth]
    assert truths and all(
        [(f.code, f.box_xyxy) for f in truth] == [(1, (24, 20, 40, 30))] for truth in truths
    )
    assert len(state.consulted()) == 32


def test_a_case_asked_again_meets_the_same_images(case, archive, state):
    # another draw around the same case would show which image stays
    first = prepare_query([[case]], archive, SPEC, STANDARD, state)
    again = prepare_query([[case]], archive, SPEC, STANDARD, state)
    assert first.images == again.images and len(state.consulted()) == 32


def test_the_next_case_meets_none_of_them(case, archive, state, tmp_path):
    prepare_query([[case]], archive, SPEC, STANDARD, state)
    other = picture(tmp_path, "other", 998)
    with pytest.raises(ArchiveError, match="31 used before"):
        prepare_query([[other]], archive, SPEC, STANDARD, state)
    assert len(state.consulted()) == 32  # a refused query spends nothing


def test_a_case_that_stands_out_spends_nothing(case, archive, state):
    loud = np.asarray(Image.open(case.path)).astype(int)
    loud[loud > 0] += np.random.default_rng(5).normal(0, 20, (loud > 0).sum()).astype(int)
    Image.fromarray(loud.clip(0, 255).astype(np.uint8)).save(case.path)
    with pytest.raises(ArchiveError, match="stands out from its covers by its noise"):
        prepare_query([[case]], archive, SPEC, STANDARD, state)
    assert not state.consulted()


def test_a_study_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no gone\.png"):
        read_study(tmp_path / "gone.png", SPEC)


def test_a_png_is_a_study(case):
    ((image,),) = read_study(case.path, SPEC)
    assert (image.width, image.height, len(image.labels)) == (64, 64, 0)


BOOK = CodeBook(findings=(FindingCode(code=LESION, category="lesion", zh="病灶"),))


@pytest.mark.parametrize(
    ("seer", "outcome", "standing"),
    [(Seer(), "answer", Standing.CERTIFIED), (Seer(wrong_half), "failed", Standing.REVOKED)],
    ids=["honest", "careless"],
)
def test_what_the_hospital_reads_and_what_everybody_can_compute(three, seer, outcome, standing):
    clinic = Clinic(three, seer)
    query_id = clinic.ask()
    clinic.run(query_id)
    query = clinic.query(query_id)
    shown = consultation_report(clinic.hospital, query, BOOK)
    assert (shown.outcome, shown.matches, shown.audits) == (outcome, query.matches, 20)
    found = [box.code for case in shown.cases for box in case.findings]
    assert found == ([LESION] if outcome == "answer" else [])
    assert shown.hospital_wei == (0 if outcome == "answer" else shown.price_wei)
    record = certificate_of(clinic.hospital.log(), MODEL)
    assert (record.standing, record.audits, record.matches) == (standing, 20, shown.matches)
    assert certificate_of(clinic.hospital.log(), query.offer.code_book).audits == 0


def test_a_batch_hides_one_case_behind_the_other(case, archive, state, tmp_path):
    other = picture(tmp_path, "other", 998)
    prepared = prepare_query([[case], [other]], archive, SPEC, STANDARD, state)
    roles = Counter(image.role for image in prepared.images)
    assert roles == {ImageRole.REAL: 2, ImageRole.AUDIT: 20, ImageRole.COVER: 10}  # as many as with one case
    assert len(prepared.hiding) == 2 and not prepared.asked_before


def test_slices_of_one_name_are_told_apart(case, archive, state, tmp_path):
    (tmp_path / "next").mkdir()
    other = picture(tmp_path / "next", "case", 998)
    prepared = prepare_query([[case], [other]], archive, SPEC, STANDARD, state)
    names = [image.name for image in prepared.images if image.role is ImageRole.REAL]
    assert names == ["case.png", "case.png (2)"] == [name for name, _, _ in prepared.sources]
    assert [path for _, path, _ in prepared.sources] == [str(case.path), str(other.path)]


def test_a_patient_who_was_in_a_query_before_is_told(case, archive, state, tmp_path):
    more = [picture(tmp_path, f"more-{number}", 100 + number, lesion=number % 2 == 1) for number in range(45)]
    assert not prepare_query([[case]], archive, SPEC, STANDARD, state).asked_before
    later = replace(picture(tmp_path, "later", 998), patient=case.patient)
    assert prepare_query([[later]], [*archive, *more], SPEC, STANDARD, state).asked_before == ("later.png",)


def test_a_query_that_goes_on_after_a_crash_is_no_second_one(case, archive, state):
    prepare_query([[case]], archive, SPEC, STANDARD, state)
    assert not prepare_query([[case]], archive, SPEC, STANDARD, state).asked_before


def test_each_case_of_a_batch_gets_its_own_answer(three):
    names = ("slice.png", "slice.png (2)")
    clinic = Clinic(three)
    _, *others = images_of()
    reals = [
        QueryImage(names[0], ImageRole.REAL, toy_picture(1)[0]),
        QueryImage(names[1], ImageRole.REAL, toy_picture(4, healthy=True)[0]),
    ]
    query_id = clinic.ask([*reals, *others[:-1]])  # of the covers one gives way
    clinic.run(query_id)
    shown = consultation_report(clinic.hospital, clinic.query(query_id), BOOK)
    assert (shown.outcome, shown.images, shown.hidden) == ("answer", STANDARD.images, 12)
    found = {case.name: [box.xyxy for box in case.findings] for case in shown.cases}
    (truth,) = toy_picture(1)[1]
    assert found == {names[0]: [truth.box_xyxy], names[1]: []}


def test_a_case_is_asked_of_one_offer_ever(three):
    # who saw the audits opened would know them again in a second query of the same images
    clinic = Clinic(three)
    (offer,) = clinic.hospital.offers()
    prepared = Prepared(tuple(images_of()), (), (), (), "the case")
    query_id = ask(clinic.hospital, offer, prepared, STANDARD)
    assert ask(clinic.hospital, offer, prepared, STANDARD) == query_id
    with pytest.raises(InputError, match="asked once ever"):
        ask(clinic.hospital, replace(offer, offer_id=offer.offer_id + 1), prepared, STANDARD)
    assert len(clinic.hospital.log().queries) == 1


@pytest.fixture
def ct_archive(tmp_path):
    """Head slices in DICOM, one a patient, every other with a lesion: more than enough for three queries."""
    return list(read_dataset(write_slices(tmp_path / "ct", range(115))).images)


def of_model(image_size, center_hu):
    data = SPEC.data.model_copy(update={"window_center_hu": center_hu, "window_width_hu": 80.0})
    model = SPEC.model.model_copy(update={"image_size": image_size})
    return SPEC.model_copy(update={"data": data, "model": model})


def closed_by(server, spec):
    """A task that closed a round with the model."""
    current = SimpleNamespace(closed=SimpleNamespace(model_digest=MODEL))
    return SimpleNamespace(rounds=[current], published=SimpleNamespace(server=server), spec=spec)


def test_the_spec_of_a_model_is_that_of_its_own_server(state):
    """Anybody may close a round with another's model, under a window that spoils the images."""
    spec, spoilt, given = of_model(64, 40.0), of_model(64, 900.0), of_model(64, 60.0)
    card = OfferCard("lesions", ImageFormat(64, 64)).to_bytes()
    offer = Offer(1, "0xserver", MODEL, spec.code_book.digest, 1, 1, bytes(32), card)
    copied = {
        1: closed_by("0xthief", spoilt),
        2: closed_by("0xserver", spec),
        3: closed_by("0xthief", spoilt),
    }
    assert spec_of(offer, copied, state) == spec
    del copied[2]
    assert spec_of(offer, copied, state, given) == given  # from the server, outside the ledger
    first = {1: closed_by("0xtrainer", spec), 2: closed_by("0xthief", spoilt)}
    assert spec_of(offer, first, state) == spec


@pytest.mark.parametrize(("image_size", "center_hu"), [(96, 40.0), (64, 45.0)], ids=["size", "window"])
def test_an_image_that_another_model_sees_otherwise_is_the_same_image(
    ct_archive, state, image_size, center_hu
):
    """Not one canonical pixel needs to be the same; a server that sees both queries sees one patient in both."""
    case, other, *archive = ct_archive
    first = prepare_query([[case]], archive, of_model(64, 40.0), STANDARD, state)
    later = of_model(image_size, center_hu)
    case, other, *archive = (replace(image, window=window_of(later)) for image in ct_archive)
    assert prepare_query([[case]], archive, later, STANDARD, state).name == first.name
    second = prepare_query([[other]], archive, later, STANDARD, state)
    assert not {image.name for image in first.images} & {image.name for image in second.images}
    shown = next(image for image in archive if image.image_id == first.images[-1].name)
    spent = {image.name for image in (*first.images, *second.images)}
    fresh = [next(image for image in archive if image.image_id not in spent)]
    for before in ([case], [shown]):  # the real one in a batch, and a cover that falls ill
        with pytest.raises(HomeError, match="in another one"):
            prepare_query([before, fresh], archive, later, STANDARD, state)


def test_the_truth_of_a_picture_that_is_not_square_ends_where_its_pixels_end(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.full((61, 96), 90, np.uint8)).save(path)
    whole = np.array([[0, 0, 96, 61]], np.float32)
    image = LabelledImage("wide", "p", "s", 96, 61, whole, np.array([1]), None, path)
    seen = read_canonical(image, 48)
    (found,) = truth_of(image, seen.scale_xy, SPEC, 48)
    assert found.box_xyxy == (0, 0, 48, 30) and seen.pixels[:30].all() and not seen.pixels[30:].any()


def with_name(image):
    """As a capture device burns it in."""
    pixels = Image.open(image.path)
    pen = ImageDraw.Draw(pixels)
    pen.fontmode = "1"
    pen.text((2, 40), "DOE^JANE", fill=255, font=ImageFont.load_default(size=12))
    pixels.save(image.path)
    return image


def test_a_case_that_shows_a_name_is_not_sent_unseen(case, archive, state):
    with pytest.raises(PolicyError, match=r"case\.png: .*look like text"):
        prepare_query([[with_name(case)]], archive, SPEC, STANDARD, state)
    assert not state.consulted()


def test_archive_images_that_show_a_name_stay_at_home(case, archive, state, tmp_path):
    marked = {with_name(image).image_id for image in archive[:14]}  # of 45, where 31 are needed
    prepared = prepare_query([[case]], archive, SPEC, STANDARD, state, text_is_harmless=True)
    assert not marked & {image.name for image in prepared.images}
    with_name(archive[14])
    with pytest.raises(ArchiveError, match=r"1 are missing.*15 with marks that look like text"):
        prepare_query([[case]], archive, SPEC, STANDARD, State(tmp_path / "another.sqlite"))


def test_a_header_that_tells_of_text_is_believed(ct_archive):
    image = ct_archive[0]
    assert not shows_text(image)
    header = dcmread(image.path)
    header.BurnedInAnnotation = "YES"
    header.save_as(image.path)
    assert shows_text(image)


@pytest.mark.parametrize(("assurance", "most"), [(STANDARD, 12), (HIGH, 23)], ids=["standard", "high"])
def test_a_batch_is_as_large_as_any_query(case, archive, state, assurance, most):
    """With more real cases than covers N would tell how many are real."""
    with pytest.raises(InputError, match=f"at most {most} patients .* the study has {most + 1}"):
        prepare_query([[case]] * (most + 1), archive, SPEC, assurance, state)
    assert not state.consulted()
