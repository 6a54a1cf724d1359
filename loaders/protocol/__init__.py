"""The protocol: messages between a supervisor and its isolates."""
