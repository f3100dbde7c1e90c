"""Second opinions: the hospital that asks, the server that answers, and the queries as the ledger tells them."""
