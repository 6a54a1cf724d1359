"""Placement: the loader, the timer and the worker processes of tenants."""
