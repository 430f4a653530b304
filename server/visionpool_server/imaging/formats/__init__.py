"""One file a picture format: its header, read from the bytes alone, and the part that OpenCV is given."""
