"""Images as codes, in memory and on disk."""
