"""Stores: a directory, memory or an object store behind one interface."""
