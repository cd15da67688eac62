"""The web page at `/` and the read API behind it."""

from headrace.console.routes import routes

__all__ = ["routes"]
