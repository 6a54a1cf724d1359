"""In process: a platform without Ray, for tests, with virtual time."""
