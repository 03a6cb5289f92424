"""`sparsekit sweep`: run a W&B sweep file on this machine, without account or server."""
