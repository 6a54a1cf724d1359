"""The write-ahead log: durable rows that are not in a segment yet."""
