"""Attacks on the walls of isolates, each from inside a fresh one."""
