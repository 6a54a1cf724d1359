"""Diagnosis: why an instance is where it is, for `why`."""
