"""Invites, requests and what members check before they vote; requests that lie are seen by each member for itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from consilia.crypto.keys import Identity
from consilia.errors import (
    InputError,
    LedgerUnreachableError,
    PolicyError,
    TransactionRevertedError,
    VerificationError,
)
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.registry import NOBODY, Kind
from consilia.roles.audit.view import open_view
from consilia.roles.keys import open_keys
from consilia.roles.membership import home as homes
from consilia.roles.membership.founding import settle_plan
from consilia.roles.membership.home import MemberKeys
from consilia.roles.membership.joining import change, join, make_invite
from consilia.roles.membership.requests import Invite, JoinRequest, new_record, own_record, signed_request
from consilia.roles.membership.voter import Voter
from consilia.settings import load_party
from consilia.settings.network import Network
from consilia.values import Role
from tests.consortium import PAST_SECONDS, Consortium, make_member


@pytest.fixture
def three(three: Consortium) -> Consortium:
    """The chain's clock says what the members' clocks say: requests are dated."""
    three.let_pass(PAST_SECONDS)
    return three


def voters(three: Consortium) -> list[Voter]:
    return [Voter(three.home / name) for name in ("hospital-1", "hospital-2", "hospital-3", "server")]


def invite_of(three: Consortium, tmp_path: Path) -> Invite:
    """The invite of the first hospital, as a newcomer reads it from its file."""
    make_invite(three.home / "hospital-1", "hospital").save(tmp_path / "invite.json")
    return Invite.load(tmp_path / "invite.json")


def newcomer(three: Consortium, tmp_path: Path, **options: object) -> JoinRequest:
    """Somebody joins by the invite."""
    home = tmp_path / "newcomer"
    if not home.exists():
        make_member(home, "newcomer")
    wanted = {"name": "newcomer", "role": "", "data": tmp_path, "certificate": b"", "days": 30}
    wanted |= {"port": 0, "store": None} | options
    return join(invite_of(three, tmp_path), home, **wanted)


def test_a_newcomer_is_admitted_by_request_and_votes(three: Consortium, tmp_path: Path) -> None:
    request = newcomer(three, tmp_path)
    assert (
        newcomer(three, tmp_path) == request == JoinRequest.load(tmp_path / "newcomer" / "join-request.json")
    )
    first, second, third, _ = voters(three)
    outcome = first.propose_request(request)
    number = outcome.proposal.proposal_id
    assert (outcome.was_new, outcome.proposal.approvals, outcome.proposal.needed) == (True, 1, 3)
    assert request.account in second.describe(outcome.proposal)
    assert second.propose_request(request).proposal.approvals == 2  # the same request is a vote for it
    assert not second.vote(number).was_new
    decided = third.vote(number)
    assert decided.proposal.enacted
    assert first.registry.is_active(request.account, Role.HOSPITAL)
    third.give(decided.proposal, 12345)
    assert first.reading.balance_wei(request.account) == 12345
    with pytest.raises(PolicyError, match="was carried out"):
        voters(three)[3].vote(number)
    again = first.propose_request(request)  # whoever voted is told that it is decided
    assert (again.proposal.proposal_id, again.proposal.enacted, again.was_new) == (number, True, False)
    with pytest.raises(PolicyError, match="was carried out"):
        voters(three)[3].propose_request(request)
    settings = load_party(tmp_path / "newcomer")
    assert settings.ledger.url == three.url and settings.store == load_party(three.home / "hospital-1").store


def test_a_request_whose_proposal_expired_can_be_proposed_again(three: Consortium, tmp_path: Path) -> None:
    request = newcomer(three, tmp_path)
    first = voters(three)[0]
    assert first.propose_request(request).proposal.proposal_id == 1
    three.let_pass(15 * 86_400)
    renewed = first.propose_request(request).proposal
    assert renewed.proposal_id == 2 and not renewed.enacted


def test_who_lists_a_key_that_it_does_not_hold_gets_no_vote(three: Consortium, tmp_path: Path) -> None:
    invite, stranger = invite_of(three, tmp_path), Identity.generate()
    keys = make_member(tmp_path / "impostor", "impostor")
    own = Identity.generate()
    claimed = replace(
        new_record(MemberKeys("impostor", keys.account, own), Role.HOSPITAL, b"", 30),
        recipient_key=stranger.recipient,
    )

    class Liar:
        """Gives the shared secrets of its own key for those of the stranger's."""

        recipient = stranger.recipient
        recipients = (stranger.recipient,)

        def exchange(self, recipient: bytes, public_key: bytes) -> bytes:
            return own.exchange(own.recipient, public_key)

    place = (invite.chain_id, invite.registry)
    request = signed_request("impostor", keys.account, Liar(), claimed, invite.verifiers, *place)
    first, second, third, _ = voters(three)
    with pytest.raises(VerificationError, match="does not show that the applicant holds"):
        first.propose_request(request)
    # one member is its friend and proposes it all the same: the others see for themselves, from the ledger alone
    proofs, signature = bytes.fromhex(request.proofs), bytes.fromhex(request.signature)
    three.hospitals[0].ledger.registry.propose_application("friend", request.application(), signature, proofs)
    for voter in (second, third):
        with pytest.raises(VerificationError, match="does not show that the applicant holds"):
            voter.vote(1)
    assert first.registry.proposal(1).approvals == 1


def test_proofs_of_another_record_are_refused(three: Consortium, tmp_path: Path) -> None:
    request = newcomer(three, tmp_path)
    longer = request.model_copy(update={"valid_to": request.valid_to + 1})
    with pytest.raises(VerificationError, match="does not show"):
        voters(three)[0].propose_request(longer)
    other = request.model_copy(update={"name": "another name"})  # not part of the record
    assert voters(three)[0].propose_request(other).was_new


def test_a_changed_signature_is_refused_by_the_registry(three: Consortium, tmp_path: Path) -> None:
    request = newcomer(three, tmp_path)
    broken = request.model_copy(update={"signature": "11" * 65})
    with pytest.raises(TransactionRevertedError, match="not the applicant's signature"):
        voters(three)[0].propose_request(broken)


def test_requests_and_homes_of_another_consortium_are_refused(three: Consortium, tmp_path: Path) -> None:
    request = newcomer(three, tmp_path)
    with pytest.raises(InputError, match="let it join with an invite of this one"):
        voters(three)[0].propose_request(request.model_copy(update={"chain_id": 1}))
    elsewhere = invite_of(three, tmp_path).model_copy(update={"chain_id": 1})
    with pytest.raises(InputError, match="asked to join another consortium"):
        join(
            elsewhere,
            tmp_path / "newcomer",
            name="newcomer",
            role="",
            data=tmp_path,
            certificate=b"",
            days=1,
            port=0,
            store=None,
        )


def test_a_members_home_takes_no_invite_of_another_consortium(three: Consortium, tmp_path: Path) -> None:
    """The attack: whoever gets a member to join another consortium in its old home takes its chain and contracts."""
    invite, options = invite_of(three, tmp_path), {"certificate": b"", "days": 1, "port": 0, "store": None}
    made = Genesis(chain_id=invite.chain_id, timestamp=1, miners=(three.addresses[0],))
    home = tmp_path / "founder"
    make_member(home, "founder")
    assert invite.deployment is not None
    invite.deployment.save(home / "deployment.json")
    made.save(home / "genesis.json")
    of_other = replace(invite.deployment, chain_id=1)
    changed = replace(invite.deployment, escrow=invite.inviter)
    for attack in (
        {"chain_id": 1, "deployment": of_other},
        {"deployment": changed},
        {"genesis": made.model_copy(update={"timestamp": 2})},
        {"chain_id": 1, "deployment": None},  # to a founding
    ):
        before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match="belongs to another consortium"):
            join(invite.model_copy(update=attack), home, name="f", role="", data=tmp_path, **options)
        assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == before
    # where the settings say that it lies elsewhere
    elsewhere = invite.model_copy(update={"chain_id": 1, "deployment": of_other})
    with pytest.raises(InputError, match="belongs to another consortium"):
        join(elsewhere, three.home / "hospital-1", name="h", role="", data=tmp_path, **options)
    own = invite.model_copy(update={"genesis": made, "url": "", "peers": ("http://127.0.0.1:1",)})
    assert join(own, home, name="f", role="", data=tmp_path, **options).registry == invite.registry


def test_a_home_of_a_founding_takes_no_other_invite(three: Consortium, tmp_path: Path) -> None:
    home, invite = tmp_path / "founder", invite_of(three, tmp_path)
    keys = make_member(home, "founder")
    settle_plan(home, keys, "embedded", "", invite.store, 7001, "embedded")
    with pytest.raises(InputError, match="belongs to another consortium"):
        options = {"certificate": b"", "days": 1, "port": 0, "store": None}
        join(invite, home, name="f", role="", data=tmp_path, **options)


def test_a_home_that_joined_founds_no_consortium(three: Consortium, tmp_path: Path) -> None:
    newcomer(three, tmp_path)
    home, store = tmp_path / "newcomer", invite_of(three, tmp_path).store
    keys = homes.make_member(home, "newcomer")
    with pytest.raises(InputError, match=r"deployment\.json and no founding"):
        settle_plan(home, keys, "embedded", "", store, 7001, "embedded")
    assert not (home / "founding.json").exists()


def test_a_newcomer_asks_the_nodes_of_its_invite_what_they_tell(three: Consortium, tmp_path: Path) -> None:
    """Of a network that splits at most one side is believed: nobody takes its own node's word alone."""
    nodes = ("http://127.0.0.1:7001", "http://127.0.0.1:7002")
    invite = invite_of(three, tmp_path).model_copy(update={"url": "", "peers": nodes, "confirmations": 7})
    options = {"certificate": b"", "days": 1, "port": 0, "store": None}
    for role, data, witnesses in (("hospital", tmp_path, nodes), ("server", None, nodes[1:])):
        home = tmp_path / f"new-{role}"
        make_member(home, role)
        join(invite, home, name=role, role=role, data=data, **options)
        ledger = load_party(home).ledger
        assert (ledger.witnesses, ledger.confirmations) == (witnesses, 7)
    # beyond one machine a node answers nobody but its own programs: a witness there would never agree
    far = invite.model_copy(update={"peers": ("http://10.0.0.1:7001",)})
    make_member(tmp_path / "far", "far")
    join(far, tmp_path / "far", name="far", role="", data=tmp_path, **options)
    assert load_party(tmp_path / "far").ledger.witnesses == ()


def test_an_invite_names_the_address_that_a_node_listens_on(three: Consortium, tmp_path: Path) -> None:
    home = tmp_path / "beyond"
    shutil.copytree(three.home / "hospital-1", home)
    Genesis(chain_id=1, timestamp=1, miners=(three.addresses[0],)).save(home / "genesis.json")
    with (home / "consilia.toml").open("a") as settings:
        settings.write('[node]\ngenesis = "genesis.json"\nport = 7001\nhost = "10.0.0.5"\n')
        settings.write('peers = ["http://10.0.0.6:7001"]\nbeyond_this_machine = true\n')
    assert make_invite(home, "hospital").peers == ("http://10.0.0.5:7001", "http://10.0.0.6:7001")


def test_a_home_that_asked_in_one_role_is_not_taken_for_another(three: Consortium, tmp_path: Path) -> None:
    request = newcomer(three, tmp_path, role="auditor", data=None)
    assert newcomer(three, tmp_path, data=None) == request  # whatever the invite offers
    with pytest.raises(InputError, match="asked to join as auditor"):
        newcomer(three, tmp_path, role="server", data=None)


def test_a_hospital_joins_with_data_and_anybody_with_a_role(three: Consortium, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data"):
        newcomer(three, tmp_path, data=None)
    with pytest.raises(InputError, match="expected the role"):
        newcomer(three, tmp_path, role="king")
    assert newcomer(three, tmp_path, role="auditor", data=None).role == "auditor"


@pytest.mark.parametrize("change_of", ["role", "peers", "verifiers", "registry"])
def test_a_changed_invite_has_another_fingerprint(three: Consortium, tmp_path: Path, change_of: str) -> None:
    invite = invite_of(three, tmp_path)
    assert make_invite(three.home / "hospital-1", "hospital").fingerprint == invite.fingerprint
    changes = {
        "role": "server",
        "peers": ("http://127.0.0.1:1",),
        "verifiers": (),
        "registry": invite.inviter,
    }
    assert invite.model_copy(update={change_of: changes[change_of]}).fingerprint != invite.fingerprint


def test_malformed_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    for text in ("", "[]", "{}", '{"format":"consilia-invite/2"}', "\x00", "[" * 4000):
        file.write_text(text)
        for kind in (Invite, JoinRequest):
            with pytest.raises(InputError, match="of Consilia") as refused:
                kind.load(file)
            assert "pydantic" not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="expected a file at"):
        Invite.load(tmp_path / "missing.json")
    file.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(InputError, match="larger than"):
        Invite.load(file)


def test_an_invite_or_request_with_an_address_that_is_none_is_refused(
    three: Consortium, tmp_path: Path
) -> None:
    file = tmp_path / "file.json"
    for made, changed in (
        (invite_of(three, tmp_path), {"peers": ["http://[::1"]}),
        (invite_of(three, tmp_path), {"url": "http://127.0.0.1:99999"}),
        (newcomer(three, tmp_path), {"node": "http://[::1"}),
    ):
        file.write_text(json.dumps(json.loads(made.model_dump_json(exclude_none=True)) | changed))
        with pytest.raises(InputError, match="expected an address"):
            type(made).load(file)


def test_a_file_that_cannot_be_written_leaves_nothing(three: Consortium, tmp_path: Path) -> None:
    made, folder = invite_of(three, tmp_path), tmp_path / "folder"
    (folder / "taken").mkdir(parents=True)
    for place in (folder / "taken", folder / "missing" / "invite.json", tmp_path / "invite.json" / "within"):
        with pytest.raises(InputError, match="expected a file to write at"):
            made.save(place)
    assert list(folder.iterdir()) == [folder / "taken"]


def test_unknown_keys_in_a_request_are_refused(three: Consortium, tmp_path: Path) -> None:
    text = json.loads(newcomer(three, tmp_path).model_dump_json())
    file = tmp_path / "request.json"
    file.write_text(json.dumps(text | {"admin": True}))
    with pytest.raises(InputError, match="admin"):
        JoinRequest.load(file)


def test_a_member_asks_for_another_account_and_a_renewed_certificate(three: Consortium) -> None:
    home = three.home / "hospital-3"
    with pytest.raises(InputError, match="nothing would change"):
        change(home, new_account=False, certificate=b"", days=0)
    renewed = change(home, new_account=False, certificate=b"the new one", days=400)
    first, second, _, server = voters(three)
    number = first.propose_request(renewed).proposal.proposal_id
    second.vote(number)
    assert server.vote(number).proposal.enacted
    assert first.reading.member(three.addresses[2]).valid_to == renewed.valid_to
    moved = change(home, new_account=True, certificate=b"", days=0)
    assert moved.account not in three.addresses and moved.replaces == three.addresses[2]
    number = first.propose_request(moved).proposal.proposal_id
    second.vote(number)
    server.vote(number)
    assert not first.registry.is_active(three.addresses[2], Role.HOSPITAL)
    assert first.registry.is_active(moved.account, Role.HOSPITAL)


def test_equal_proposals_are_one(three: Consortium) -> None:
    first, second, third, _ = voters(three)
    subject = three.addresses[2]
    assert first.propose(Kind.SUSPENSION, subject).proposal.proposal_id == 1
    assert second.propose(Kind.SUSPENSION, subject).proposal.approvals == 2
    assert first.propose(Kind.REMOVAL, subject).proposal.proposal_id == 2
    assert first.propose_quorum(70, 30).proposal.proposal_id == 3
    assert second.propose_quorum(70, 30).proposal.approvals == 2
    assert [p.proposal_id for p in third.open_proposals()] == [1, 2, 3]
    assert "more than 70 %" in third.describe(third.registry.proposal(3))
    third.leave()
    assert not first.registry.is_active(subject, Role.HOSPITAL)


def test_who_was_admitted_again_can_leave_again(three: Consortium, tmp_path: Path) -> None:
    first, second, third, _ = voters(three)
    third.leave()
    third.leave()  # a script that asks again
    record = own_record(first.reading.member(three.addresses[2]))
    record = replace(record, replaces=NOBODY, valid_to=record.valid_to + 1)
    invite, keys = invite_of(three, tmp_path), open_keys(third.settings.keys)
    place = (invite.chain_id, invite.registry)
    request = signed_request("back", keys.signer, keys.opener, record, invite.verifiers, *place)
    number = first.propose_request(request).proposal.proposal_id
    assert second.vote(number).proposal.enacted
    assert first.registry.is_active(three.addresses[2], Role.HOSPITAL)
    third.leave()
    assert not first.registry.is_active(three.addresses[2], Role.HOSPITAL)


def test_a_members_own_network_file_says_where_its_ledger_is(three: Consortium, tmp_path: Path) -> None:
    newcomer(three, tmp_path)
    home = tmp_path / "newcomer"
    network = Network.load(home)
    assert (network.server, network.hospitals, network.genesis) == (None, (home,), None)
    assert (network.url, network.confirmations) == (three.url, 1)
    with open_view(home, None, None) as view:
        assert view.source == three.url and len(view.ledger.members()) == 4
    # on the embedded chain it is in a file, and until the node has written that, at the node
    made = Genesis(chain_id=1, timestamp=1, miners=(three.addresses[0],))
    invite = invite_of(three, tmp_path).model_copy(
        update={"url": "", "peers": ("http://127.0.0.1:1",), "genesis": made}
    )
    make_member(tmp_path / "embedded", "embedded")
    options = {"certificate": b"", "days": 1, "port": 0, "store": None}
    join(invite, tmp_path / "embedded", name="e", role="server", data=None, **options)
    assert Network.load(tmp_path / "embedded").url is None
    with pytest.raises(LedgerUnreachableError), open_view(tmp_path / "embedded", None, None):
        raise AssertionError("nobody listens there")
