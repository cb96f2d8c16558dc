"""trainvitals: the vital signs of a training run."""
