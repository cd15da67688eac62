"""The HTTP door: one ASGI application, one pipeline of short stages per call."""
