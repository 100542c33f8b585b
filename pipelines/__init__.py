"""Jobs, one module each: each takes settings or arguments, and returns a report."""
