"""`trainvitals top`: the runs and GPUs of some hosts, live in a terminal, without a Prometheus.

From source to screen: `sources` fetch, `samples` parse, `model` makes rows of it, `overview` and `details` draw them as
lines of text, and `app` puts those on the terminal. Only `app` knows Textual.
"""
