"""Memory, time and cost of a study, before it is launched and without a GPU."""
