"""The transports: they translate between the wire and the service, and decide nothing else."""
