"""Launching: checks of the machine, resources, nodes, torchrun, the workflow process."""
