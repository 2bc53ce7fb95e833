"""Learning from labelled frames without torch."""
