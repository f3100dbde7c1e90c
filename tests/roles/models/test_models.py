"""Models by name: what the ledger has is found and opened, by server and hospital; what it has not is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilia.cli import app
from consilia.errors import EnvelopeError, InputError, VerificationError
from consilia.roles.artifacts import file_digest
from consilia.roles.audit.view import open_view
from consilia.roles.models.card import card_markdown, model_card
from consilia.roles.models.catalogue import choose_model, digest_of, find_registrations, open_model
from tests.consortium import Consortium, consortium, read_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Three hospitals, of which two trained for two rounds."""
    with (
        pytest.MonkeyPatch.context() as patch,
        consortium(tmp_path_factory.mktemp("models"), patch, 3) as made,
    ):
        made.start_server(rounds=2, max_hospitals=2)
        made.finish(0, 1)
        yield made


def models(run: Consortium) -> list[Path]:
    return sorted((run.home / "server" / "models").glob("*/round-*.safetensors"))


def test_every_global_model_is_found_with_its_round(run: Consortium) -> None:
    with open_view(run.home, None, None) as view:
        for rounds_done, file in enumerate(models(run)):
            (found,) = find_registrations(view, file_digest(file))
            assert (found.number, found.rounds_done, found.title) == (1, rounds_done, "three tensors")
            assert found.deed.by.address == run.server_address
    assert len(models(run)) == 3


def test_a_changed_file_and_an_update_are_no_models(run: Consortium, tmp_path: Path) -> None:
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(models(run)[-1].read_bytes()[:-1] + b"\0")
    update = run.task().rounds[0].updates[0].root
    with open_view(run.home, None, None) as view:
        for digest in (file_digest(changed), update):
            with pytest.raises(VerificationError, match="none of them"):
                find_registrations(view, digest)


@pytest.mark.parametrize("party", ["server", "hospital-1", "hospital-2"])
def test_who_took_part_opens_the_model_of_each_round(run: Consortium, party: str) -> None:
    for rounds_done, file in enumerate(models(run)):
        with open_model(run.home / party, 1, rounds_done) as model:
            assert model.digest == file_digest(file)
            assert model.registered and model.registered.rounds_done == rounds_done
            assert model.spec.title == "three tensors"
    with open_model(run.home / party, 1, None) as newest:
        assert newest.digest == file_digest(models(run)[-1])
        assert read_weights(newest.path).keys() == {"head.bias", "head.weight", "scale"}
    assert not list((run.home / party).glob("tmp*")), "what was opened is gone"


def test_who_took_no_part_cannot_open_it(run: Consortium) -> None:
    with pytest.raises(EnvelopeError), open_model(run.home / "hospital-3", 1, None):
        pass


def test_a_server_that_changed_its_copy_gets_the_registered_one_from_the_store(
    run: Consortium, tmp_path: Path
) -> None:
    shutil.copytree(run.home, tmp_path / "home")
    (copy,) = (tmp_path / "home" / "server" / "models").glob("*/round-002.safetensors")
    copy.write_bytes(copy.read_bytes()[:-1] + b"\0")
    with open_model(tmp_path / "home" / "server", 1, 2) as model:
        assert model.digest == file_digest(models(run)[-1]) and model.path != copy


@pytest.mark.parametrize(("number", "rounds_done"), [(2, None), (0, None), (1, 3), (1, -1)])
def test_no_such_task_or_round(run: Consortium, number: int, rounds_done: int | None) -> None:
    with pytest.raises(InputError), open_model(run.home / "server", number, rounds_done):
        pass


def test_the_command_says_where_a_model_comes_from(run: Consortium, tmp_path: Path) -> None:
    def verify(name: str) -> object:
        command = ["model", "verify", name, "--home", str(run.home), "--format", "json"]
        return CliRunner().invoke(app, command, catch_exceptions=True)

    done = verify(str(models(run)[1]))
    assert done.exit_code == 0 and '"after_rounds": 1' in done.output
    assert (
        verify(str(file_digest(models(run)[1]))).output.split('"registered"')[1]
        == done.output.split('"registered"')[1]
    )
    assert isinstance(verify("0" * 64).exception, VerificationError)
    with pytest.raises(InputError, match="64 hex digits"):
        digest_of("no such file")


def test_a_card_tells_who_contributed_how_much(run: Consortium, tmp_path: Path) -> None:
    command = ["model", "card", "--home", str(run.home), "--round", "1", "--to", str(tmp_path / "card")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["digest"] == str(file_digest(models(run)[1]))
    rows = sorted(
        (row["account"], row["updates_in_the_average"], row["examples"]) for row in card["hospitals"]
    )
    assert rows == sorted((run.addresses[index], 1, 10 * (index + 1)) for index in (0, 1))
    text = (tmp_path / "card.md").read_text()
    assert "medical device" in text and "pretrained" not in text
    card["training"]["pretrained_digest"] = "ab" * 32
    assert f"with pretrained weights of the file `{'ab' * 32}`" in card_markdown(card)


def test_a_card_takes_no_measurement_of_another_model(run: Consortium, tmp_path: Path) -> None:
    measured = {"model": {"digest": "0" * 64}, "map50": 1, "patients": 1, "images": 1, "lesions": 1}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    command = ["model", "card", "--home", str(run.home), "--measured", str(tmp_path / "measured.json")]
    assert isinstance(CliRunner().invoke(app, command).exception, InputError)


def test_a_title_from_the_ledger_is_no_markdown(run: Consortium) -> None:
    with open_view(run.home, None, None) as view:
        card = model_card(view, choose_model(view, 1, None), None)
    card["title"] = "# [safe](javascript:alert)\n<script>"
    assert "\\[safe\\](javascript" in card_markdown(card) and "\n<script" not in card_markdown(card)
