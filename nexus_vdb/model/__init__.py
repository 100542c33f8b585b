"""The NEXUS-EMB model: network, training, export. Needs the extra `train`."""
