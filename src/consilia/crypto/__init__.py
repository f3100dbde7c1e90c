"""Envelopes, key strings and keys: the part of Consilia to audit first. Formats: docs/formats/envelope.md."""
