"""What only a machine with an NVIDIA GPU can show; elsewhere all of it is skipped. See conftest.py."""
