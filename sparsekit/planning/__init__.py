"""From options to a plan: segments, steps, learning rates, replicas and cost."""
