"""Networks, losses, and how they are trained. No data, no files of the project."""
