"""The local loop: optimizer steps on one client."""
