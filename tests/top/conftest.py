"""Fixtures of `trainvitals top`'s tests."""

from tests.exporter.conftest import run_dir, start_exporter, start_run_file

__all__ = ["run_dir", "start_exporter", "start_run_file"]
