"""Faults played to the whole real stack, and what it says of them."""
