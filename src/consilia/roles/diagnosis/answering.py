"""A server's second opinions (steps: docs/protocols/diagnosis.md); it may be killed at any point.

What cannot be made again is on disk before it is posted: the secret that every u_j comes from, the reports of a query,
each refusal.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from consilia.artifact import read_frame
from consilia.errors import (
    DatasetError,
    InputError,
    StoreError,
    StoreUnreachableError,
    TransactionRefusedError,
    TransactionRevertedError,
    VerificationError,
    reason_of,
)
from consilia.ledger.diagnosis import ArtifactName, DiagnosisContract
from consilia.protocols.answer import OwnAnswer, write_reports
from consilia.protocols.consultation import Offer, OfferCard, Query, Step, next_step
from consilia.protocols.diagnosis import ImageFormat, Place, list_digest, positions_of, reports_digest
from consilia.protocols.findings import Finding, from_words, to_words
from consilia.protocols.query import Package, package_bytes, read_package
from consilia.roles.artifacts import fetch_artifact, publish_artifact
from consilia.roles.diagnosis.consultation import both_bound, claim_credit
from consilia.roles.diagnosis.query_log import DiagnosisLog, fold_diagnosis
from consilia.roles.lock import alone_within
from consilia.roles.party import Party
from consilia.values import Digest, Json


class Diagnoser(Protocol):
    """A model that reads images; all of a query in one call, none of them treated in any other way."""

    image_format: ImageFormat

    def diagnose(self, images: Sequence[bytes]) -> list[tuple[Finding, ...]]:
        """At most eight findings for each image (`image_format` bytes), in their order.

        Raises:
            DatasetError: an image cannot be read; the query is refused with these words.
        """


@dataclass(frozen=True)
class OfferedModel:
    """A model that a server answers for, on its terms. `load` is called when the first query comes."""

    model_digest: Digest
    code_book: Digest
    card: OfferCard
    price_wei: int
    bond_wei: int
    load: Callable[[], Diagnoser]

    def is_of(self, offer: Offer) -> bool:
        """Whether an offer on the ledger is this one."""
        terms = (offer.model_digest, offer.code_book, offer.price_wei, offer.bond_wei, offer.card)
        return terms == (
            self.model_digest,
            self.code_book,
            self.price_wei,
            self.bond_wei,
            self.card.to_bytes(),
        )


class Answering:
    """One server's answers. `answer_seconds`: an answer leaves so long after its query, or a multiple of it."""

    def __init__(self, party: Party, models: Sequence[OfferedModel], answer_seconds: float) -> None:
        self.party = party
        self.contract = DiagnosisContract(party.ledger)
        deployment = party.ledger.deployment
        self.place = Place(deployment.chain_id, deployment.diagnosis)
        self.models = tuple(models)
        self.answer_seconds = answer_seconds
        self._loaded: dict[Digest, Diagnoser] = {}
        self._reported: set[tuple[Digest, str]] = set()

    def log(self) -> DiagnosisLog:
        """Second opinions as the ledger tells them now."""
        return fold_diagnosis(self.party.events())

    def offer(self) -> None:
        """Step 0: put every model of the settings onto the ledger that is not there yet."""
        listed = self.log().offers.values()
        for model in self.models:
            if any(offer.server == self.party.address and model.is_of(offer) for offer in listed):
                continue  # also one that was withdrawn: only other terms bring it back
            terms = f"{model.model_digest}/{model.code_book}/{model.price_wei}/{model.bond_wei}"
            self.contract.offer(
                f"diagnosis/offer/{terms}/{Digest.of(model.card.to_bytes())}",
                model_digest=model.model_digest,
                code_book=model.code_book,
                price_wei=model.price_wei,
                bond_wei=model.bond_wei,
                recipient_key=self.party.identity.recipient,
                card=model.card.to_bytes(),
            )
            self.party.report("model offered", title=model.card.title, model=str(model.model_digest))

    def withdraw(self, offer_id: int) -> None:
        """Take no more queries for an offer; raises TransactionRevertedError where it is not one's own."""
        self.contract.withdraw(f"diagnosis/withdraw/{offer_id}", offer_id)
        self.party.report("offer withdrawn", offer=offer_id)

    def advance(self) -> DiagnosisLog:
        """Take every step that is up to this server, and fetch what it has earned."""
        log = self.log()
        for query in log.queries.values():
            if query.server == self.party.address and not query.state.over:
                self._attempt(query)
        claim_credit(self.party, self.contract, log)
        return log

    def _attempt(self, query: Query) -> None:
        step = next_step(query, self.party.address, time.time(), both_bound(self.party, query))
        try:
            self._take(step, query)
        except TransactionRevertedError as error:
            self._say(query, "answering step refused", reason=error.reason)
        except TransactionRefusedError as error:  # as for want of gas; again with the next block
            self._say(query, "the ledger's node refused a step", reason=str(error))
        except (StoreError, InputError) as error:  # no hospital's fault; again with the next block
            self._say(query, "store failed", reason=str(error))
        except OSError as error:  # nor is a full disk
            self._say(query, "answering step failed", reason=reason_of(error))

    def _take(self, step: Step, query: Query) -> None:
        match step:
            case Step.ANSWER:
                # one process of this home at a time, or they write each other's files; the other one goes on meanwhile
                with alone_within(self.party.work("answering.lock"), 0.0) as held:
                    if held:
                        self._answer(query)
            case Step.SCORE:
                self._score(query)
            case Step.RELEASE:
                self._release(query)
            case Step.EXPIRE:
                self.contract.expire(f"diagnosis/expire/{query.query_id}", query.query_id)
                self._say(query, "query expired")

    # Step 2

    def _answer(self, query: Query) -> None:
        refusal = self.party.state.fact(f"diagnosis/refusal/{query.query_id}")
        if refusal is None:
            try:
                answer = self._prepared(query)
            except StoreUnreachableError:
                raise
            except (VerificationError, DatasetError, StoreError) as error:
                refusal = str(error).encode()[:128].decode(errors="ignore")
                self.party.state.remember(f"diagnosis/refusal/{query.query_id}", refusal)
        if time.time() < self._answer_at(query):
            return  # a refusal waits too: its time tells how far the server came
        if refusal is None and self.party.ledger.balance_wei(self.party.address) < query.offer.bond_wei:
            refusal = "this server cannot post its bond now"
            self.party.state.remember(f"diagnosis/refusal/{query.query_id}", refusal)
        if refusal is not None:
            self.contract.refuse(f"diagnosis/refuse/{query.query_id}", query.query_id, refusal)
            self._say(query, "query refused", reason=refusal)
            return
        artifact = self._sealed_reports(query, answer)
        self.contract.answer(
            f"diagnosis/answer/{query.query_id}",
            query.query_id,
            answers=list_digest(answer.commitments()),
            reports=reports_digest(answer.sealed_reports()),
            artifact=artifact,
            bond_wei=query.offer.bond_wei,
        )
        self._say(query, "answered", images=query.images)

    def _answer_at(self, query: Query) -> float:
        """The time that an answer leaves at: whole periods after the query, the first if it was made in time."""
        if self.answer_seconds <= 0:
            return 0.0
        name = f"diagnosis/ready/{query.query_id}"
        ready = float(self.party.state.remember_once(name, str(time.time())))
        periods = max(1, -int(-(ready - query.asked_at) // self.answer_seconds))
        return query.asked_at + periods * self.answer_seconds

    def _prepared(self, query: Query) -> OwnAnswer:
        """The one answer to a query, on disk before anybody sees anything of it.

        Raises:
            VerificationError, DatasetError: the query is to be refused, with these words.
            StoreError: the images are not in the store.
        """
        secret = bytes.fromhex(self.party.state.remember_once("diagnosis/secret", secrets.token_hex(32)))
        name = f"diagnosis/reports/{query.query_id}"
        text = self.party.state.fact(name)
        if text is None:
            package = self._open(query)
            kept = [[item.hex() for item in package.label_secrets], self._diagnosed(query, package)]
            text = self.party.state.remember_once(name, json.dumps(kept))
        label_secrets, words = json.loads(text)
        return OwnAnswer(
            query.query_id,
            secret,
            tuple(bytes.fromhex(item) for item in label_secrets),
            tuple(from_words(item) for item in words),
        )

    def _diagnosed(self, query: Query, package: Package) -> list[tuple[int, ...]]:
        """The reports' words, in the order of the images.

        Raises:
            DatasetError: an image cannot be read, or the model fails; why it does stays with this server.
        """
        try:
            reports = [to_words(item) for item in self._diagnoser(query).diagnose(package.pixels)]
            if len(reports) != len(package.pixels):
                raise ValueError(f"expected a report for each of {query.images} images, got {len(reports)}")
        except DatasetError:
            raise
        except Exception as error:  # a model may be anybody's code: whatever it raises costs one query
            text = (error.strerror or "") if isinstance(error, OSError) else str(error)  # no path in a log
            self._say(query, "the model failed", error=type(error).__name__, reason=text.partition("\n")[0])
            raise DatasetError("this server's model failed") from error
        return reports

    def _model(self, query: Query) -> OfferedModel:
        model = next((model for model in self.models if model.is_of(query.offer)), None)
        if model is None:
            raise DatasetError("this server does not run the model any more")
        return model

    def _diagnoser(self, query: Query) -> Diagnoser:
        model = self._model(query)
        if model.model_digest not in self._loaded:
            self._loaded[model.model_digest] = model.load()
        return self._loaded[model.model_digest]

    def _open(self, query: Query) -> Package:
        """The images, after every check that needs no model."""
        image_format = self._model(query).card.image_format
        expected_bytes = package_bytes(query.images, image_format)
        with self.party.store.reader(query.root) as envelope:
            came_bytes = read_frame(envelope).plaintext_bytes
        if came_bytes != expected_bytes:  # looked at in clear first: no hospital fills this disk
            raise VerificationError(
                f"{query.images} images of {image_format.height} x {image_format.width} are {expected_bytes} "
                f"bytes, {came_bytes} came"
            )
        target = self.party.work(f"query-{query.query_id}")
        try:
            fetch_artifact(
                self.party.store,
                query.root,
                self.party.identity,
                [query.offer.recipient_key, query.recipient_key],
                self.place.query_context(query.query_id, query.hospital),
                target,
            )
            return read_package(target.read_bytes(), query.query_id, query.images, image_format)
        finally:
            target.unlink(missing_ok=True)  # a patient's images stay no longer than they are needed

    def _sealed_reports(self, query: Query, answer: OwnAnswer) -> ArtifactName:
        file = self.party.work(f"reports-{query.query_id}")
        file.write_bytes(write_reports(answer))
        artifact = publish_artifact(
            self.party.store,
            self.party.state,
            f"reports/{query.query_id}",
            file,
            [query.recipient_key, query.offer.recipient_key],
            self.place.reports_context(query.query_id, self.party.address),
        )
        file.unlink()
        return ArtifactName(artifact.root, artifact.key_hash, artifact.size)

    # Steps 4 and 5

    def _score(self, query: Query) -> None:
        answer = self._kept(query)
        us, ys = answer.opening(positions_of(query.roles, query.images, audits=True))
        self.contract.score(
            f"diagnosis/score/{query.query_id}",
            query.query_id,
            answers=answer.commitments(),
            reports=reports_digest(answer.sealed_reports()),
            us=us,
            ys=ys,
            xs=query.xs,
        )
        self._say(query, "scored", matches=sum(y == x for y, x in zip(ys, query.xs, strict=True)))

    def _release(self, query: Query) -> None:
        answer = self._kept(query)
        us, ys = answer.opening(positions_of(query.roles, query.images, audits=False))
        self.contract.release(
            f"diagnosis/release/{query.query_id}",
            query.query_id,
            answers=answer.commitments(),
            reports=reports_digest(answer.sealed_reports()),
            us=us,
            ys=ys,
        )
        self._say(query, "answers released")

    def _kept(self, query: Query) -> OwnAnswer:
        if self.party.state.fact(f"diagnosis/reports/{query.query_id}") is None:
            raise InputError(
                f"query {query.query_id} was answered from another home: its secrets are not here"
            )
        return self._prepared(query)

    def _say(self, query: Query, step: str, **facts: Json) -> None:
        if (query.query_id, step) not in self._reported:
            self._reported.add((query.query_id, step))
            self.party.report(step, query=str(query.query_id), **facts)


def model_file(home: Path, folder: str, rounds: int) -> Path:
    """The last global model of a task that this server ran."""
    return home / "models" / folder / f"round-{rounds:03d}.safetensors"
