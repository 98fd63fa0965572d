"""Short runs of a project's plan, or of plans near it, each in a folder of its own that may be thrown away."""
