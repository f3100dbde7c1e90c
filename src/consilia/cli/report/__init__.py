"""The report of a demo run: its values, its page, and its summary on a terminal."""
