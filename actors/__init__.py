"""Movement: the state machine of a tenant, and the loader, tenant and timer that run as Ray actors."""
