"""Features in, predictions out, with their losses."""
