"""Learning without labels: tasks that make their own targets."""
