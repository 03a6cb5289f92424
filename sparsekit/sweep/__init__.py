"""`sparsekit sweep`: a W&B sweep file run on this machine, without account or server."""
