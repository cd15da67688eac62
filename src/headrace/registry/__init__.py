"""Models by reference: what a name means, and bringing the bytes here."""
