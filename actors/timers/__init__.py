"""Timers: which sleeping tenants are due, and waking them."""
