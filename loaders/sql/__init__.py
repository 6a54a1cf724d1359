"""SQL: the sandboxed process that runs one tenant's statements, and the platform's end of it."""
