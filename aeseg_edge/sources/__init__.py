"""Where frames come from. The table is in ``registry``; what a source is, in ``base``."""
