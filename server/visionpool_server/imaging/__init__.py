"""Pictures: bytes to arrays, arrays to the shape a model wants, results drawn on arrays."""
