"""One module a verb: its example, its options, and what it does."""
