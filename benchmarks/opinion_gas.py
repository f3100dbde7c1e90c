"""What one second opinion costs in gas, step by step, with the contract as it is; see gas.py for how it is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gas import Town
from rich.console import Console
from rich.table import Table

from consilia.ledger.client import Ledger
from consilia.ledger.diagnosis import ArtifactName, DiagnosisContract
from consilia.ledger.outbox import Outbox
from consilia.protocols.answer import OwnAnswer
from consilia.protocols.diagnosis import (
    ImageRole,
    Place,
    QueryImage,
    list_digest,
    report_digests,
    reports_digest,
    sealed_words,
)
from consilia.protocols.findings import Finding
from consilia.protocols.query import OwnQuery, make_query
from consilia.values import Digest

PRICE_WEI, BOND_WEI = 10**15, 10**14
ENVELOPE = ArtifactName(Digest.of(b"root"), Digest.of(b"key hash"), 10**6)
HERE, THERE = (10, 10, 60, 50), (100, 100, 160, 150)


@dataclass(frozen=True)
class GasOfOpinion:
    """The gas of each step with `audits` known cases among `audits + hidden` images.

    `challenge` (one image of eight boxes) and `claim` are not in the `total` of a query that passes.
    """

    audits: int
    hidden: int
    ask: int
    answer: int
    open_audit: int
    score: int
    accept: int
    release: int
    total: int
    challenge: int
    claim: int


def measure(audits: int, hidden: int) -> GasOfOpinion:
    """Run a query that passes, and another one whose boxes are challenged."""
    with tempfile.TemporaryDirectory(prefix="consilia-gas-") as folder:
        town = Town(Path(folder), 1)
        outbox = Outbox(Path(folder) / "hospital.sqlite")
        try:
            return _Bench(town, outbox, audits, hidden).run()
        finally:
            outbox.close()
            town.close()


class _Bench:
    def __init__(self, town: Town, outbox: Outbox, audits: int, hidden: int) -> None:
        hospital = Ledger(
            "embedded",
            town.deployment,
            account=town.hospitals[0],
            outbox=outbox,
            provider=town.node.provider(),
        )
        self.hospital, self.server = DiagnosisContract(hospital), DiagnosisContract(town.ledger)
        self.place = Place(town.deployment.chain_id, town.deployment.diagnosis)
        self.address = str(town.hospitals[0].address)
        self.audits, self.hidden = audits, hidden
        self.server.offer(
            "offer",
            model_digest=ENVELOPE.root,
            code_book=ENVELOPE.root,
            price_wei=PRICE_WEI,
            bond_wei=BOND_WEI,
            recipient_key=ENVELOPE.root,
            card=b"{}",
        )

    def run(self) -> GasOfOpinion:
        self._passing(0)  # the first of all writes words that later ones find
        gas = self._passing(1)
        claim = self.server.claim("claim").gas_used
        return GasOfOpinion(
            self.audits,
            self.hidden,
            **gas,
            total=sum(gas.values()),
            challenge=self._challenged(2),
            claim=claim,
        )

    def _passing(self, number: int) -> dict[str, int]:
        query, answer, gas = self._scored(number, HERE)
        gas["accept"] = self.hospital.accept(f"accept/{number}", query.query_id).gas_used
        hidden = [j for j in range(len(query.images)) if j not in query.audits]
        us, ys = answer.opening(hidden)
        gas["release"] = self.server.release(
            f"release/{number}",
            query.query_id,
            answers=answer.commitments(),
            reports=reports_digest(answer.sealed_reports()),
            us=us,
            ys=ys,
        ).gas_used
        return gas

    def _challenged(self, number: int) -> int:
        query, answer, _ = self._scored(number, THERE)
        position = query.audits[0]
        sealed = answer.sealed_reports()
        return self.hospital.challenge(
            f"challenge/{number}",
            query.query_id,
            position,
            label_secret=query.secrets.label_secret(position),
            truth_salt=query.secrets.truth_salt(position),
            truth=query.truth_words(position),
            answer_secret=answer.answer_secret(position),
            report=sealed_words(sealed[position]),
            labels=query.commitments(),
            answers=answer.commitments(),
            digests=report_digests(sealed),
        ).gas_used

    def _scored(
        self, number: int, reported: tuple[int, int, int, int]
    ) -> tuple[OwnQuery, OwnAnswer, dict[str, int]]:
        """A query whose answers all match; where its boxes are is told by `reported`."""
        truth = tuple(Finding(code, HERE) for code in range(1, 9))
        pictures = [QueryImage(f"{n}", ImageRole.AUDIT, b"x", truth) for n in range(self.audits)]
        pictures += [QueryImage(f"{n}", ImageRole.REAL, b"x") for n in range(self.hidden)]
        seed = number.to_bytes(32, "big")
        query = make_query(self.place, self.address, pictures, self.audits, seed)
        secrets = tuple(query.secrets.label_secret(j) for j in range(len(pictures)))
        report = tuple(Finding(code, reported, 0.9) for code in range(1, 9))
        answer = OwnAnswer(query.query_id, bytes(32), secrets, (report,) * len(pictures))
        us, ys = answer.opening(query.audits)
        labels = [query.label(j) for j in query.audits]
        gas = {
            "ask": self._ask(number, query),
            "answer": self.server.answer(
                f"answer/{number}",
                query.query_id,
                answers=list_digest(answer.commitments()),
                reports=reports_digest(answer.sealed_reports()),
                artifact=ENVELOPE,
                bond_wei=BOND_WEI,
            ).gas_used,
            "open_audit": self.hospital.open_audit(
                f"open/{number}",
                query.query_id,
                roles=query.bitmap,
                salt=query.secrets.roles_salt(),
                labels=query.commitments(),
                marks=[query.mark(j) for j in query.audits],
                xs=labels,
            ).gas_used,
            "score": self.server.score(
                f"score/{number}",
                query.query_id,
                answers=answer.commitments(),
                reports=reports_digest(answer.sealed_reports()),
                us=us,
                ys=ys,
                xs=labels,
            ).gas_used,
        }
        return query, answer, gas

    def _ask(self, number: int, query: OwnQuery) -> int:
        return self.hospital.ask(
            f"ask/{number}",
            offer_id=1,
            images=len(query.images),
            audits=len(query.audits),
            threshold=query.threshold,
            salt=query.secrets.salt(),
            labels=list_digest(query.commitments()),
            roles=query.roles_commitment(),
            artifact=ENVELOPE,
            recipient_key=ENVELOPE.root,
            price_wei=PRICE_WEI,
        ).gas_used


def print_opinions(console: Console, measured: Sequence[GasOfOpinion]) -> None:
    """One column for each number of images."""
    table = Table(title="Gas of a second opinion, by audit and hidden images")
    table.add_column("")
    for item in measured:
        table.add_column(f"({item.audits}, {item.hidden})", justify="right")
    names = ("ask", "answer", "open_audit", "score", "accept", "release", "total", "challenge", "claim")
    for name in names:
        table.add_row(name, *(f"{getattr(item, name):,}" for item in measured))
    console.print(table)


if __name__ == "__main__":
    print_opinions(Console(), [measure(20, 12), measure(41, 23)])
