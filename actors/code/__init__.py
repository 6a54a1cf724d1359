"""Code: finding and caching the bundle that a tenant runs."""
