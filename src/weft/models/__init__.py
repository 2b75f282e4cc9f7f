"""Models: loading, adapters, and the resident model of a process."""
