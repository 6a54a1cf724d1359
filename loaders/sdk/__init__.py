"""The SDK: what tenant code and drivers import."""
