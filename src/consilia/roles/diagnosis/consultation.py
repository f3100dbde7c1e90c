"""A hospital's second opinions (steps: docs/protocols/diagnosis.md); it may be killed at any point.

What cannot be made again is on disk before it is posted: the seed of all secrets and of the order, which image is
which, and what was found.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from consilia.artifact import read_frame
from consilia.errors import (
    InputError,
    ObjectDamagedError,
    ObjectMissingError,
    StoreError,
    TransactionRefusedError,
    TransactionRevertedError,
    VerificationError,
    reason_of,
)
from consilia.ledger.diagnosis import ArtifactName, DiagnosisContract
from consilia.protocols.answer import REPORT_BYTES, Diagnosis, read_reports, recover
from consilia.protocols.consultation import Offer, Query, Step, next_step
from consilia.protocols.diagnosis import (
    ImageFormat,
    ImageRole,
    Place,
    QueryImage,
    QueryState,
    list_digest,
    positions_of,
    report_digests,
    report_words,
    sealed_words,
)
from consilia.protocols.findings import from_words, localised
from consilia.protocols.query import OwnQuery, QuerySecrets, make_query, read_package, write_package
from consilia.roles.artifacts import fetch_artifact, publish_artifact
from consilia.roles.diagnosis.query_log import DiagnosisLog, fold_diagnosis
from consilia.roles.lock import alone
from consilia.roles.party import Party
from consilia.values import Digest, Json, Role
from consilia.whole_file import whole_file

PACKAGE_FILE, REPORTS_FILE = "query.bin", "reports.bin"


@dataclass(frozen=True)
class Opinion:
    """What came of a query: its state, how good the server was on known cases, and what it found on the real one."""

    query: Query
    diagnoses: tuple[tuple[QueryImage, Diagnosis], ...]
    """For each real case, once the query is RELEASED; its `name` is the hospital's own."""
    spoilt: tuple[str, ...]
    """Why the report of a real case could not be used."""
    transactions: dict[str, Digest]
    """The transaction of each step, by its event's name."""

    @property
    def failed(self) -> bool:
        """ERROR: there is no diagnosis, and none will come."""
        return self.query.state.over and not self.diagnoses


class Consultation:
    """One hospital's queries. Several processes of one home may work on them: each step is taken once."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self.contract = DiagnosisContract(party.ledger)
        deployment = party.ledger.deployment
        self.place = Place(deployment.chain_id, deployment.diagnosis)
        self._reported: set[tuple[Digest, str]] = set()

    def log(self) -> DiagnosisLog:
        """Second opinions as the ledger tells them now."""
        return fold_diagnosis(self.party.events())

    def offers(self) -> list[Offer]:
        """The models that one can ask now: of servers in good standing, and described by a card that can be read."""
        registry = self.party.ledger.registry
        return [
            offer
            for offer in self.log().offers.values()
            if not offer.withdrawn and _is_described(offer) and registry.is_active(offer.server, Role.SERVER)
        ]

    # Step 1

    def ask(self, offer_id: int, images: Sequence[QueryImage], threshold: int) -> Digest:
        """Step 1: seal the images, and ask with the fee. Returns the query's id.

        Called again after a crash with the same images it goes on with the query that it began.

        Raises:
            InputError: no such offer, or images that make no query; see `make_query`.
            TransactionRevertedError: the contract refuses, as where the offer was withdrawn meanwhile.
        """
        offer = self.log().offers.get(offer_id)
        if offer is None:
            raise InputError(
                f"expected the number of an offer, got {offer_id}: consilia ledger events lists them"
            )
        query = self._begun(offer, images, threshold)
        folder = self.folder(query.query_id)
        package = write_package(query, offer.described.image_format)
        with whole_file(folder / PACKAGE_FILE) as file:
            file.write(package)
        own_key = self.party.identity.recipient
        artifact = publish_artifact(
            self.party.store,
            self.party.state,
            f"query/{query.query_id}",
            folder / PACKAGE_FILE,
            [offer.recipient_key, own_key],
            self.place.query_context(query.query_id, self.party.address),
        )
        self.contract.ask(
            f"diagnosis/ask/{query.query_id}",
            offer_id=offer_id,
            images=len(query.images),
            audits=len(query.audits),
            threshold=query.threshold,
            salt=query.secrets.salt(),
            labels=list_digest(query.commitments()),
            roles=query.roles_commitment(),
            artifact=ArtifactName(artifact.root, artifact.key_hash, artifact.size),
            recipient_key=own_key,
            price_wei=offer.price_wei,
        )
        self._say(query.query_id, "asked", images=len(query.images), price_wei=str(offer.price_wei))
        return query.query_id

    def _begun(self, offer: Offer, images: Sequence[QueryImage], threshold: int) -> OwnQuery:
        """The one query of these images, on disk before anything of it is elsewhere."""
        told = sorted(f"{image.role.value} {Digest.of(image.pixels)} {image.truth}" for image in images)
        name = Digest.of("\n".join((str(offer.offer_id), str(threshold), *told)).encode())
        seed = bytes.fromhex(self.party.state.remember_once(f"diagnosis/seed/{name}", secrets.token_hex(32)))
        query = make_query(self.place, self.party.address, images, threshold, seed)
        kept = {
            "seed": seed.hex(),
            "threshold": threshold,
            "images": [
                [image.name, image.role.value, None if image.truth is None else query.truth_words(j)]
                for j, image in enumerate(query.images)
            ],
        }
        self.party.state.remember_once(f"diagnosis/query/{query.query_id}", json.dumps(kept))
        return query

    def own(self, query: Query) -> OwnQuery:
        """A query with all that only this home knows.

        Raises:
            InputError: this home does not know it.
            StoreError: its images are not in this home any more, and not to be had from the store.
        """
        text = self.party.state.fact(f"diagnosis/query/{query.query_id}")
        if text is None:
            raise InputError(f"query {query.query_id} was not asked from this home")
        kept = json.loads(text)
        image_format: ImageFormat = query.offer.described.image_format
        pixels = read_package(self._package(query), query.query_id, query.images, image_format).pixels
        images = tuple(
            QueryImage(name, ImageRole(role), data, None if truth is None else from_words(truth))
            for (name, role, truth), data in zip(kept["images"], pixels, strict=True)
        )
        return OwnQuery(query.query_id, kept["threshold"], images, QuerySecrets(bytes.fromhex(kept["seed"])))

    def _package(self, query: Query) -> bytes:
        """What was asked; a home that was restored from its backup has it from the store, sealed to its own key."""
        file = self.folder(query.query_id) / PACKAGE_FILE
        with self._alone(query):
            if not file.exists():
                fetch_artifact(
                    self.party.store,
                    query.root,
                    self.party.identity,
                    [query.offer.recipient_key, query.recipient_key],
                    self.place.query_context(query.query_id, query.hospital),
                    file,
                )
            return file.read_bytes()

    def _alone(self, query: Query) -> AbstractContextManager[None]:
        """`hospital run` may be at a query's files, beside `consult`."""
        return alone(self.folder(query.query_id) / "files.lock")

    def folder(self, query_id: Digest) -> Path:
        """Where a query's images and reports are."""
        folder = self.party.home / "consultations" / str(query_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    # Steps 3 to 5

    def advance(self) -> DiagnosisLog:
        """Take every step that is up to this hospital, and fetch what it is owed."""
        log = self.log()
        for query in log.queries.values():
            if query.hospital == self.party.address:
                self._attempt(query)
        claim_credit(self.party, self.contract, log)
        return log

    def _attempt(self, query: Query) -> None:
        step = next_step(query, self.party.address, time.time(), both_bound(self.party, query))
        try:
            self._take(step, query)
        except TransactionRevertedError as error:
            self._say(query.query_id, "consultation step refused", reason=error.reason)
        except TransactionRefusedError as error:  # as for want of gas; again with the next block
            self._say(query.query_id, "the ledger's node refused a step", reason=str(error))
        except (StoreError, VerificationError, InputError) as error:
            self._say(query.query_id, "consultation step failed", reason=str(error))
        except OSError as error:  # a full disk says nothing of what was answered
            self._say(query.query_id, "consultation step failed", reason=reason_of(error))

    def _take(self, step: Step, query: Query) -> None:
        match step:
            case Step.OPEN_AUDIT:
                self._open_audit(query)
            case Step.JUDGE:
                self._judge(query)
            case Step.RECOVER:
                self._recover(query)
            case Step.EXPIRE:
                self.contract.expire(f"diagnosis/expire/{query.query_id}", query.query_id)
                self._say(query.query_id, "query expired")

    def _open_audit(self, query: Query) -> None:
        """Step 3: only when every report is there; what is not there could never be read."""
        own = self.own(query)
        try:
            self._fetch_reports(query)
        except (VerificationError, ObjectMissingError, ObjectDamagedError) as error:
            reason = str(error).encode()[:128].decode(errors="ignore")
            self.contract.decline(f"diagnosis/decline/{query.query_id}", query.query_id, reason)
            self._say(query.query_id, "answer declined", reason=reason)
            return
        self.contract.open_audit(
            f"diagnosis/open/{query.query_id}",
            query.query_id,
            roles=own.bitmap,
            salt=own.secrets.roles_salt(),
            labels=own.commitments(),
            marks=[own.mark(j) for j in own.audits],
            xs=[own.label(j) for j in own.audits],
        )
        self._say(query.query_id, "audit opened")

    def _fetch_reports(self, query: Query) -> list[bytes]:
        """The encrypted reports, from this home's copy or from the store."""
        assert query.reports is not None, "it is answered"
        file = self.folder(query.query_id) / REPORTS_FILE
        with self._alone(query):
            if not file.exists():
                self._open_reports(query, file)
            data = file.read_bytes()
        return read_reports(data, query.query_id, query.images, query.reports)

    def _open_reports(self, query: Query, file: Path) -> None:
        assert query.reports_root is not None, "it is answered"
        with self.party.store.reader(query.reports_root) as envelope:
            came_bytes = read_frame(envelope).plaintext_bytes
        if came_bytes != 40 + REPORT_BYTES * query.images:
            raise VerificationError(f"expected the reports of {query.images} images, {came_bytes} bytes came")
        fetch_artifact(
            self.party.store,
            query.reports_root,
            self.party.identity,
            [query.recipient_key, query.offer.recipient_key],
            self.place.reports_context(query.query_id, query.server),
            file,
        )

    def _judge(self, query: Query) -> None:
        """Step 4: accept, or challenge until too few matches are left."""
        own, sealed = self.own(query), self._fetch_reports(query)
        secret = {j: u for j, (u, _) in query.openings().items()}
        bad = [
            j
            for j in positions_of(query.matched & ~query.challenged, query.images, audits=True)
            if not localised(own.truth_words(j), report_words(query.query_id, j, secret[j], sealed[j]))
        ]
        if query.matches - len(bad) >= query.threshold:
            self.contract.accept(f"diagnosis/accept/{query.query_id}", query.query_id)
            self._say(query.query_id, "accepted", matches=query.matches, boxes_apart=len(bad))
            return
        for position in bad[: query.matches - query.threshold + 1]:
            self.contract.challenge(
                f"diagnosis/challenge/{query.query_id}/{position}",
                query.query_id,
                position,
                label_secret=own.secrets.label_secret(position),
                truth_salt=own.secrets.truth_salt(position),
                truth=own.truth_words(position),
                answer_secret=secret[position],
                report=sealed_words(sealed[position]),
                labels=own.commitments(),
                answers=query.answers,
                digests=report_digests(sealed),
            )
        self._say(query.query_id, "challenged", images=query.matches - query.threshold + 1)

    def _recover(self, query: Query) -> None:
        """Step 5: the diagnosis; what was found is written down once."""
        if self.party.state.fact(f"diagnosis/found/{query.query_id}") is None:
            opinion = self.opinion(query)
            found = ["; ".join(opinion.spoilt)] if opinion.spoilt else []
            self.party.state.remember_once(f"diagnosis/found/{query.query_id}", json.dumps(found))
            self._say(query.query_id, "diagnosis received", spoilt=len(opinion.spoilt))

    def opinion(self, query: Query, log: DiagnosisLog | None = None) -> Opinion:
        """What came of one of this hospital's queries so far.

        Raises:
            InputError: this home does not know it.
            StoreError, VerificationError: the reports are not to be had.
        """
        own = self.own(query)
        openings = query.openings()
        diagnoses: list[tuple[QueryImage, Diagnosis]] = []
        spoilt: list[str] = []
        if query.state is QueryState.RELEASED:
            sealed = self._fetch_reports(query)
            for j in own.real:
                answer_secret, answer = openings[j]
                label_secret = own.secrets.label_secret(j)
                try:
                    found = recover(query.query_id, j, label_secret, answer_secret, answer, sealed[j])
                except VerificationError as error:
                    spoilt.append(f"{own.images[j].name}: {error}")
                else:
                    diagnoses.append((own.images[j], found))
        transactions = (log or self.log()).transactions.get(query.query_id, {})
        return Opinion(query, tuple(diagnoses), tuple(spoilt), transactions)

    def _say(self, query_id: Digest, step: str, **facts: Json) -> None:
        if (query_id, step) not in self._reported:  # each block asks again; a person reads it once
            self._reported.add((query_id, step))
            self.party.report(step, query=str(query_id), **facts)


def both_bound(party: Party, query: Query) -> bool:
    """Whether each party of a query may act, or has left and owes its steps all the same.

    While a query waits for its answer nobody owes anything yet: it ends when either is gone.
    """
    if query.state.over:
        return True
    registry = party.ledger.registry
    sides = ((query.hospital, Role.HOSPITAL), (query.server, Role.SERVER))
    out = [account for account, role in sides if not registry.is_active(account, role)]
    return not out or (query.state is not QueryState.ASKED and all(map(registry.has_left, out)))


def _is_described(offer: Offer) -> bool:
    try:
        return offer.described is not None
    except VerificationError:
        return False


def claim_credit(party: Party, contract: DiagnosisContract, log: DiagnosisLog) -> None:
    """Fetch what a party is owed for its queries, or for its answers."""
    owed_wei = log.owed_wei(party.address)
    if owed_wei == 0 or not party.ledger.member(party.address).in_good_standing(int(time.time())):
        return  # what a suspended one is owed waits
    try:
        contract.claim(f"diagnosis/claim/{log.claims.get(party.address, 0)}")
    except TransactionRevertedError as error:
        party.report("claim refused", reason=error.reason)
    except TransactionRefusedError as error:
        party.report("claim refused", reason=str(error))
    else:
        party.report("claimed", amount_wei=str(owed_wei))
