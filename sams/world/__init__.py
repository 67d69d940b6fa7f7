"""The synthetic world: tasks with checkable answers, their grading, its local judge and difficulty table."""
