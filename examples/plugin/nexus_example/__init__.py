"""A store and a source of one's own, known to nexus-vdb by entry points."""
