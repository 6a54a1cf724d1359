"""Isolates: processes that run tenant code, and who starts and ends them."""
