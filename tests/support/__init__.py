"""What tests share that is no fixture: makers of data and keys, stand-ins for machines and networks, tolerances."""
