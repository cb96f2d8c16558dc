"""One exporter per host: its training runs, GPUs and vital parts as Prometheus metrics on one port."""
