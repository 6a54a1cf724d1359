"""Placement: the loader, the timer and the processes that tenants live in."""
