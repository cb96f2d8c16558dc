"""`trainvitals stack`: looking after the monitoring around the training runs."""
