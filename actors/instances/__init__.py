"""Instances: what is known of each one, as a fold of the log and as data."""
