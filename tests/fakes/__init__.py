"""Stand-ins that are the real thing, only small: a model file, an upstream server."""
