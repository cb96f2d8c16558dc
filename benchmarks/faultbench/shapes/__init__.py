"""Small training loops, each with the faults that it can have."""
