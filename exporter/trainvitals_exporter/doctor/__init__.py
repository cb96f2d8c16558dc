"""`trainvitals doctor`: finds what is wrong in a set-up, and says how to mend it. One file for each thing looked at."""
