"""The core: decides what happens to a tenant's instances, without I/O."""
