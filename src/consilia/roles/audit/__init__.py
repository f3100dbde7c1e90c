"""Looking without taking part: a ledger read, traced, verified, exported, and a whole home audited."""
