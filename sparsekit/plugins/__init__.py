"""Finding plugins through entry points, and checking, listing and starting them."""
