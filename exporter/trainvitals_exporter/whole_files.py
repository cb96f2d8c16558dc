"""Files that other programs read while they are written anew."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Put the content in the file's place in one move, so that nobody ever reads half of it. Raises OSError."""
    # Prometheus, node_exporter and containers read it as other users, and some by how its name ends.
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.chmod(scratch, 0o644)  # noqa: PTH101  # as above
        os.replace(scratch, path)  # noqa: PTH105
    except BaseException:
        os.unlink(scratch)  # noqa: PTH108
        raise
