"""The log: appending rows, and reading and checking them."""
