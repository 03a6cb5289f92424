"""One replica through one segment, and what that needs."""
