"""RPC: calls between actors, and from drivers to actors."""
