"""OCR: a picture through the models of a pipeline. `reader` has the flow."""
