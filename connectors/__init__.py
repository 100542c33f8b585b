"""One module per outside system; the registry names the classes."""
