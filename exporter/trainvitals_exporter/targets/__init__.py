"""`trainvitals targets`: tells a Prometheus which hosts have an exporter."""
