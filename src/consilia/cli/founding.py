"""`consilia network create`: the founding of a consortium, by one founder or several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.output import Format, Output, make_room

if TYPE_CHECKING:
    from consilia.roles.membership.founding import Plan
    from consilia.roles.membership.home import MemberKeys
    from consilia.settings.sections import Confirmations

MOST_DAYS = 36_500
"""A hundred years: the registry takes more, and no certificate is good for longer."""

FORMAT = typer.Option(Format.TEXT, "--format", help="How to report.")
IMAGES = typer.Option(None, exists=True, file_okay=False, help="A hospital's images.")
PASSWORD_FILE = typer.Option(
    None,
    exists=True,
    dir_okay=False,
    help="The new keys' password, in its first line. Else CONSILIA_PASSWORD; else a person; else one is drawn.",
)


class EngineName(StrEnum):
    """Which ledger a new consortium stands on."""

    EMBEDDED = "embedded"
    RPC = "rpc"


def create(
    home: Path = typer.Option(..., help="The member's own home."),
    name: str = typer.Option("", help="The founder's name; default: the name of its home."),
    role: str = typer.Option("hospital", help="The founder's own role: hospital, server or auditor."),
    engine: EngineName = typer.Option(EngineName.EMBEDDED, help="embedded, or rpc for any EVM network."),
    url: str = typer.Option("", help="With --engine rpc: the network's JSON-RPC address."),
    confirmations: str = typer.Option(
        "",
        help="With --engine rpc: when a block counts. finality where none is ever undone (QBFT), proof-of-work, or a "
        "number of blocks; see the page on engines.",
    ),
    store: Path = typer.Option(
        ...,
        help="The folder of sealed artifacts that all members reach, or a TOML file with a section store.",
    ),
    data: Path | None = IMAGES,
    certificate: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="The founder's legal certificate."
    ),
    days: int = typer.Option(365, min=1, max=MOST_DAYS, help="How long its record is valid."),
    port: int = typer.Option(0, min=0, max=65535, help="Its node's port; 0 takes a free one."),
    password_file: Path | None = PASSWORD_FILE,
    founder: list[Path] = typer.Option([], help="Another founder's join-request.json; may be repeated."),
    prepare: bool = typer.Option(
        False, help="Only write founding-invite.json, with which the other founders sign first."
    ),
    output: Format = FORMAT,
) -> None:
    """Found a consortium: genesis, founders, contracts. Run again after an interruption, it goes on."""
    from consilia.roles.membership import founding
    from consilia.roles.membership.home import free_ports, make_member
    from consilia.roles.membership.requests import JoinRequest, new_record
    from consilia.settings import store_at
    from consilia.values import Role

    home, say = home.resolve(), Output("network", output)
    _check_founder_options(role, engine, url, data)
    depth = _confirmations(confirmations, engine)
    make_room(home, folder=True)
    with tell_password(home, say):
        keys = make_member(home, name or home.name, password_file, typed=True)
    own_port = port or free_ports(1)[0]
    plan = founding.settle_plan(home, keys, engine.value, url, store_at(store), own_port, depth)
    invite = founding.founding_invite(plan, keys)
    if prepare:
        invite.save(home / "founding-invite.json")
        say("founding prepared", invite="founding-invite.json", fingerprint=invite.fingerprint)
        return
    content = certificate.read_bytes() if certificate else b""
    record = founding.own_founder_record(new_record(keys, Role[role.upper()], content, days), plan)
    others = [JoinRequest.load(path) for path in founder]
    nodes = tuple(other.node for other in others if other.node)
    _write_founder_settings(home, keys, data if role == "hospital" else None, plan, nodes)
    requests = [founding.founder_request(keys, record, invite), *others]
    founders = [founding.checked_founder(request, plan, keys) for request in requests]
    say("founders checked", founders=[request.name for request in requests])
    deployment = founding.found(home, plan, keys, founders)
    elsewhere = plan.url if plan.engine == "rpc" else ""
    founding.write_network(home, plan.store, elsewhere, plan.confirmations)
    say(
        "consortium founded",
        engine=plan.engine,
        chain_id=plan.chain_id,
        confirmations=plan.confirmations,
        registry=deployment.registry,
        training=deployment.training,
        block=deployment.block,
    )


def _check_founder_options(role: str, engine: EngineName, url: str, data: Path | None) -> None:
    from consilia.errors import InputError

    if role not in ("hospital", "server", "auditor"):
        raise InputError(f"--role: expected hospital, server or auditor, got {role!r}")
    if role == "hospital" and data is None:
        raise InputError("a hospital founds with --data FOLDER: the images that it trains on")
    if engine is EngineName.EMBEDDED and role != "hospital":
        raise InputError("the first founder of an embedded chain is a hospital: its node mines the contracts")
    if (engine is EngineName.RPC) != bool(url):
        raise InputError("--url goes with --engine rpc: the network's JSON-RPC address")


def _confirmations(text: str, engine: EngineName) -> Confirmations:
    """What --confirmations says. Which depth is safe on another network is for the founder to know: no default."""
    from pydantic import TypeAdapter, ValidationError

    from consilia.errors import InputError
    from consilia.settings.sections import Confirmations

    if engine is EngineName.EMBEDDED and not text:
        return "embedded"
    try:
        return TypeAdapter[Confirmations](Confirmations).validate_python(
            int(text) if text.isdecimal() else text
        )
    except ValidationError as error:
        raise InputError(
            "--confirmations: expected finality (no block is ever undone: QBFT, anvil), proof-of-work, or how many "
            f"blocks, 1 to 1000 (Clique: validators / 2 + 1); got {text!r}"
        ) from error


def _write_founder_settings(
    home: Path, keys: MemberKeys, data: Path | None, plan: Plan, nodes: tuple[str, ...]
) -> None:
    """Write the settings if there are none. `nodes` are the other founders': peers, and witnesses."""
    from consilia.roles.membership.home import Seat
    from consilia.settings import SETTINGS_FILE

    if (home / SETTINGS_FILE).exists():
        return
    seat = Seat(
        name=keys.name,
        url=plan.url,
        store=plan.store,
        data=data.resolve() if data is not None else None,
        port=plan.port if plan.engine == "embedded" else None,
        confirmations=plan.confirmations,
        peers=nodes,
        witnesses=nodes,
        password_file=keys.password_file,
    )
    (home / SETTINGS_FILE).write_text(seat.toml(), "utf-8")


@contextmanager
def tell_password(home: Path, say: Output) -> Iterator[None]:
    """Say it when a password was drawn meanwhile: it lies in clear beside the keys that it protects."""
    from consilia.roles.membership.home import PASSWORD_FILE

    file = home / PASSWORD_FILE
    was_there = file.exists()
    yield
    if not was_there and file.exists():
        say(
            "password drawn",
            file=str(file),
            hint="in clear, beside the keys that it opens",
        )
