"""Bundles: a tenant's code under the hash of its content, and where it comes from."""
