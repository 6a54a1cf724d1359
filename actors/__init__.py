"""Movement: the state machine of a tenant, and the loader, tenants and timer that Ray runs."""
