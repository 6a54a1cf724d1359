"""SQL: the walled process in which one tenant's statements run, and the platform's end of it."""
