"""The demo: three invented hospitals, their data, a tiny base model, and the picture of what came out."""
