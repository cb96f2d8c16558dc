"""One sick training run, from its first gradient to the notification."""
