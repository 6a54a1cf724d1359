"""The guest: what runs inside an isolate, around the tenant's code."""
