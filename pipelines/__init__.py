"""One job a file; imported as `nexus_vdb.pipelines`."""
