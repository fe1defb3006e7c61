"""Networks: plain modules from an image batch to Outputs."""
