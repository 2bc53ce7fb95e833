"""The version, where bundles, reports and the page take it from."""

__version__ = "0.1.0"
