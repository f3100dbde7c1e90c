"""Who judges a dispute: opens the evidence and then the artifact itself, by the same steps as the buyer, and rules."""

from __future__ import annotations

import shutil

from consilia.errors import EnvelopeError, StoreError, TransactionRevertedError, VerificationError
from consilia.ledger.exchange import ExchangeContract
from consilia.protocols.exchange import Deal, DealState, Verdict, open_evidence
from consilia.roles.exchange.deal_log import ExchangeLog, fold_exchange
from consilia.roles.exchange.examination import Finding, examine, place_of
from consilia.roles.party import Party
from consilia.roles.training.task_log import fold


class Arbiter:
    """A server or an auditor that buyers named in their requests. It sees the plaintext of what it judges."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self.contract = ExchangeContract(party.ledger)

    def advance(self, only_look: bool = False) -> list[Deal]:
        """Rule on every open dispute that is this party's to judge; the deals that it ruled on.

        To only look is to do the same, and to tell the ruling instead of putting it onto the ledger. One deal that
        nobody can judge holds up no other: silence pays the seller, so it would be an attack.

        Raises:
            VerificationError: some are not ruled on, each was reported with its reason; all others are.
        """
        log = fold_exchange(self.party.events())
        mine = [
            deal
            for deal in log.deals.values()
            if deal.state is DealState.DISPUTED and deal.request.arbiter == self.party.address
        ]
        ruled = []
        for deal in mine:
            try:
                self._rule(deal, log, only_look)
                ruled.append(deal)
            except (StoreError, VerificationError) as error:
                self.party.report("not ruled", deal=str(deal.deal_id), reason=str(error))
            except TransactionRevertedError as error:
                self.party.report("not ruled", deal=str(deal.deal_id), reason=error.reason)
        if len(ruled) < len(mine):
            raise VerificationError(
                f"{len(mine) - len(ruled)} of {len(mine)} disputes are not ruled on, for the reasons above; "
                "what the store lacks has to be put in again before the deal's time is over"
            )
        return ruled

    def _rule(self, deal: Deal, log: ExchangeLog, only_look: bool) -> None:
        if self.party.ledger.confirmed_block().timestamp >= deal.deadline:
            raise VerificationError("the time to rule is over: the deal settles as if nobody had judged")
        finding = self._judge(deal, log)
        for_buyer = finding.verdict is not Verdict.AS_REGISTERED
        reason = (finding.reason or "it opens as registered").encode()[:128].decode(errors="ignore")
        if not only_look:
            self.contract.rule(f"exchange/rule/{deal.deal_id}", deal.deal_id, for_buyer, reason)
        said = "would rule" if only_look else "ruled"
        self.party.report(said, deal=str(deal.deal_id), for_buyer=for_buyer, reason=reason)

    def _judge(self, deal: Deal, log: ExchangeLog) -> Finding:
        """What the arbiter finds itself; evidence that is not the s^ of this deal is a complaint without ground."""
        listing, request = log.listing_of(deal), deal.request
        if listing is None:
            return Finding(Verdict.AS_REGISTERED, "the buyer confirmed what nobody registered so", None)
        try:
            secret = open_evidence(deal.evidence, self.party.identity, deal.deal_id, deal.t, request.key_hash)
        except (EnvelopeError, VerificationError) as error:
            return Finding(Verdict.AS_REGISTERED, f"no evidence: {error}", None)
        tasks = fold(self.party.events())
        copy = self.party.work(f"judged-{request.root}")
        folder = self.party.work(f"judged-{deal.deal_id}")
        try:
            self.party.store.get(request.root, copy)
            place = place_of(listing, self.party.ledger.deployment, tasks)
            return examine(copy, secret, listing, place, tasks, folder)
        finally:  # what it judged is not its own
            copy.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
