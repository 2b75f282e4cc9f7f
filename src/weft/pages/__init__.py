"""Pages about runs: one self-contained HTML file for each, from the files in run directories."""
