"""Global models by name: found, measured, asked for findings, described on a card."""
