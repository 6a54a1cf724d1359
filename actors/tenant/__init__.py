"""The tenant: a core, its log and its isolates put together as one actor."""
