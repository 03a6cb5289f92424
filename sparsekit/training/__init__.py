"""Training one replica through one segment."""
