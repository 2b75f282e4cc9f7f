"""What a client's update weighs in the cohort's mean; one file each, listed in `weft.registry.WEIGHTINGS`."""
