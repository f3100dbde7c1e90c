"""Two hospitals and an arbiter who deal in one small data set; methods read like what happens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from consilia.imaging.readers import read_dataset
from consilia.protocols.exchange import Deal, DealState
from consilia.roles.exchange.arbiter import Arbiter
from consilia.roles.exchange.datasets import Offering, register_dataset
from consilia.roles.exchange.deals import Exchange, Terms
from consilia.settings.sections import ExchangeSection
from consilia.values import Digest
from tests.consortium import Consortium

PRICE_WEI, BOND_WEI = 10**15, 10**14
BY_POLICY = ExchangeSection(decide="policy")
PATIENT = "Winnetou-4711"


def write_images(folder: Path, count: int = 4, seed: int = 7) -> Path:
    """Grey images with a box each, COCO beside them, and a patient's name in the annotations and in the PNGs."""
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(seed)
    images, boxes = [], []
    for number in range(count):
        name = f"{PATIENT}-{number}.png"
        pixels = noise.integers(0, 255, (48, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append(
            {"id": number, "file_name": name, "width": 64, "height": 48, "patient": f"{PATIENT}-{number % 2}"}
        )
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [4, 5, 20, 10.5]})
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "lesion"}]}
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder


class Trade:
    """A seller (the first hospital unless told otherwise), a buyer (the second) and the server as arbiter."""

    def __init__(self, town: Consortium, seller: int = 0) -> None:
        self.town = town
        self.seller, self.buyer = self.exchange(seller), self.exchange(1)
        self.arbiter = Arbiter(town.server)
        self.terms = Terms(PRICE_WEI, BOND_WEI, town.server_address)

    def exchange(self, index: int) -> Exchange:
        """A hospital's deals; it grants what its policy admits."""
        made = self.town.hospitals[index].exchange
        made.policy = BY_POLICY
        return made

    def restart(self, index: int) -> Exchange:
        """As after kill -9."""
        self.town.restart_hospital(index)
        made = self.exchange(index)
        if index == 0:
            self.seller = made
        else:
            self.buyer = made
        return made

    def register(self, name: str = "heads", seed: int = 7) -> Digest:
        """The seller packs and registers four images."""
        folder = self.town.home / f"images-{name}"
        dataset = read_dataset(folder if folder.exists() else write_images(folder, seed=seed))
        return register_dataset(self.seller, dataset, Offering(name, f"CT {name}", "four images", PRICE_WEI))

    def request(self, root: Digest) -> Digest:
        """The buyer asks for it."""
        return self.buyer.request(self.buyer.log().find(str(root)), self.terms)

    def deal(self, deal_id: Digest) -> Deal:
        """What the ledger tells of a deal."""
        return self.buyer.log().deals[deal_id]

    def deal_in(self, state: DealState, root: Digest | None = None) -> Digest:
        """A deal that has gone as far as a state by honest steps; DISPUTED is a false complaint."""
        deal_id = self.request(root or self.register())
        if state >= DealState.OFFERED:
            self.seller.advance()
        if state >= DealState.CONFIRMED:
            self.buyer.advance()
        if state >= DealState.REVEALED:
            self.seller.advance()
        if state is DealState.DISPUTED:
            self.buyer.dispute(self.deal(deal_id))
        assert self.deal(deal_id).state is state
        return deal_id

    def run(self, deal_id: Digest) -> Deal:
        """Everybody takes its steps until nothing moves any more."""
        while True:
            before = self.deal(deal_id)
            self.seller.advance()
            self.buyer.advance()
            if self.deal(deal_id) == before:
                return before

    def let_pass(self, days: float) -> None:
        """Days go by."""
        self.town.let_pass(days * 86_400)

    def said(self, index: int, step: str) -> list[dict[str, object]]:
        """What a hospital reported under a name."""
        return self.town.steps[self.town.names[index]].named(step)

    def conserved(self) -> None:
        """The contract holds what it owes."""
        ledger = self.town.hospitals[0].ledger
        assert self.seller.contract.open_wei() == ledger.balance_wei(ledger.deployment.exchange)

    def swap_objects(self, first: Digest, second: Digest) -> None:
        """The store gives each object for the other."""
        paths = self.town.object_path(first), self.town.object_path(second)
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(contents), strict=True):
            path.chmod(0o600)
            path.write_bytes(content)
