"""Every call on record: the call record, its journal and store, metrics."""
