"""`python -m trainvitals_exporter` is `trainvitals exporter`."""

import sys

from trainvitals_exporter.command import command

sys.exit(command(sys.argv[1:]))
