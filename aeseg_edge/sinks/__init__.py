"""Where results go. The table of kinds is in ``registry``; what a sink is, in ``base``."""
