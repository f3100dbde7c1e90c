"""Who belongs: a new consortium, a newcomer, a vote, another identity."""
