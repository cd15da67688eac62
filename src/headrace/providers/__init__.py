"""One adapter per upstream dialect; the local runtime is one of them."""
