"""Which weights stay: scores, allocations, masks."""
