"""Hosting: bundles loaded in isolates, and calls into them."""
