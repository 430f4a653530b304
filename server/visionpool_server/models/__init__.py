"""What a model is on disk (bundle), what its files say (discovery), how it is loaded and kept (loader, repository)."""
