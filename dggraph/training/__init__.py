"""Training: from a configuration to an archive."""
