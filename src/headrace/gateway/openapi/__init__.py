"""What the server says of its own API: /openapi.json and /admin/openapi.json."""
