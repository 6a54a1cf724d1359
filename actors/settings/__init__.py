"""What may be set for a platform, by what it bounds: `PlatformConfig` and its groups."""
