"""Short profiling programs, each run in a child process (`python -m profiles.probes`): only there is torch."""
