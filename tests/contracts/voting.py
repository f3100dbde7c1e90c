"""A registry with its members' keys, and the applications that they sign: what the tests of votes stand on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import boa
from eth_account.signers.local import LocalAccount

from consilia.ledger.registry import NOBODY, Application, Kind
from consilia.values import Digest, Role
from tests.contracts.conftest import RICH_WEI, VALID_TO, account, founder, load, next_contract

VOTE_SECONDS = 14 * 86400
EMERGENCY_VOTE_SECONDS = 2 * 86400
EMERGENCY_SECONDS = 14 * 86400
PAUSE_SECONDS = 90 * 86400
FOR_GOOD = 2**256 - 1
PROOFS = b"proofs that the contract cannot judge"


@dataclass
class Town:
    """A registry of one server, member 0, and hospitals; everybody by number."""

    registry: Any
    keys: list[LocalAccount]

    def address(self, number: int) -> str:
        return str(self.keys[number].address)

    def propose(self, kind: Kind, subject: int, by: int = 0) -> int:
        return int(self.registry.propose(int(kind), self.address(subject), sender=self.address(by)))

    def vote(self, proposal_id: int, *numbers: int) -> None:
        for number in numbers:
            self.registry.vote(proposal_id, sender=self.address(number))

    def decide(self, kind: Kind, subject: int, *numbers: int) -> int:
        """The first of the numbers proposes, all others vote."""
        proposal_id = self.propose(kind, subject, numbers[0])
        self.vote(proposal_id, *numbers[1:])
        return proposal_id

    def newcomer(self, number: int = 90, **changes: Any) -> tuple[LocalAccount, Application]:
        key = account(number)
        boa.env.set_balance(key.address, RICH_WEI)
        application = Application(
            account=key.address,
            recipient_key=Digest.of(key.address.encode()),
            role=Role.HOSPITAL,
            certificate_digest=Digest.of(b"certificate"),
            valid_from=0,
            valid_to=VALID_TO,
            replaces=NOBODY,
            proofs_digest=Digest.of(PROOFS),
        )
        return key, replace(application, **changes)

    def apply(self, key: LocalAccount, application: Application, by: int = 0, **changes: Any) -> int:
        chain_id, registry = boa.env.evm.patch.chain_id, str(self.registry.address)
        signature = changes.get("signature", application.sign(key, chain_id, registry))
        values = tuple(vars(application).values())
        arguments = (values, signature, changes.get("proofs", PROOFS))
        return int(self.registry.propose_application(*arguments, sender=self.address(by)))

    def renewal(self, number: int, **changes: Any) -> Application:
        """A new record for a member."""
        record = self.registry.member(self.address(number))
        kept = {
            name: getattr(record, name) for name in ("account", "recipient_key", "valid_from", "valid_to")
        }
        return self.newcomer()[1].__class__(
            **(
                kept
                | {"role": Role(record.role), "certificate_digest": Digest(record.certificate_digest)}
                | {"replaces": self.address(number), "proofs_digest": Digest.of(PROOFS)}
                | changes
            )
        )

    def needed(self, proposal_id: int) -> tuple[int, int]:
        tally = self.registry.tally(proposal_id)
        return tally.approvals, tally.needed

    def active(self) -> list[int]:
        return [n for n, key in enumerate(self.keys) if self.registry.in_good_standing(key.address)]


def town(hospitals: int, **changes: Any) -> Town:
    keys = [account(number + 1) for number in range(hospitals + 1)]
    roles = [Role.SERVER, *[Role.HOSPITAL] * hospitals]
    place = next_contract(str(boa.env.eoa))
    founders = [founder(key, role, place, **changes) for key, role in zip(keys, roles, strict=True)]
    for key in keys:
        boa.env.set_balance(key.address, RICH_WEI)
    return Town(load("registry", founders), keys)


def wait(seconds: int) -> None:
    boa.env.evm.patch.timestamp += seconds
