"""One run from its first segment to its last, and what it leaves on disk."""
