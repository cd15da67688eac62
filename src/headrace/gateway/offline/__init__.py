"""Work that waits: files of requests, run when nobody else needs the engine."""
