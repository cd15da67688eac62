"""The one declarative file: schema, loading, versioning."""
