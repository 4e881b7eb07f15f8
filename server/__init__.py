"""The HTTP edge of Preamble: routes, identity, store, upstream client, metrics and the command line."""

__version__ = "0.1.0"
