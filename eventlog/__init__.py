"""The ground floor: one append-only event log per tenant, on a disk or an object store, read by SQL."""
