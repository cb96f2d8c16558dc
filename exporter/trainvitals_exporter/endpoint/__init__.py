"""Serving over HTTP: sockets, TLS, users, limits. What is served comes from the runner."""
