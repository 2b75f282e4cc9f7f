"""From a configuration to a finished run: data becomes sites, names become parts, rounds become files."""
