"""Wire types of every dialect and the neutral form between them. No I/O."""
