"""The demo: three invented hospitals, their data, a tiny base model, and a picture of the results."""
