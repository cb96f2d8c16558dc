"""How far one Prometheus carries the monitoring of many GPUs: `make scale`, docs/scaling.md."""
