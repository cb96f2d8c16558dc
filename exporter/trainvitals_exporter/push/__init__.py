"""`trainvitals push`: for jobs that nobody can scrape, the exporter's page goes to the monitoring by itself."""
