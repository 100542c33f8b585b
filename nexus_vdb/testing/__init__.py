"""Contract tests for third-party connectors, and a deterministic encoder to run them with."""
