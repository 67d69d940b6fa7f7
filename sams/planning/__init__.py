"""Plan a study: hours, memory, disk and judge calls, computed without a GPU."""
