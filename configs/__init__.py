"""Model and job settings; one commented file each."""
