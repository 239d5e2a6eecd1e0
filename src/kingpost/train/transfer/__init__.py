"""What is kept, frozen or adapted when a net that has learned something learns something else."""
