"""What adaptive best-of-N is worth, on recorded candidates: tasks, verifiers, the study. Knows nothing of HTTP."""
