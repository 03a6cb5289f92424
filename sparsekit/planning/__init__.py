"""Planning a run: segments, steps, learning rates, replicas and cost."""
