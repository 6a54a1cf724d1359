"""Guests: code bundles, the isolates that run them, and the wire between isolate and supervisor."""
