"""On PYTHONPATH of all that the fault bench starts: lets hooks and exporter keep pace with compressed time."""

import os

if "FAULTBENCH_FACTOR" in os.environ:
    from benchmarks.faultbench import paces

    paces.compress(float(os.environ["FAULTBENCH_FACTOR"]))
    if "FAULTBENCH_GPU" in os.environ:
        paces.show_gpu(int(os.environ["FAULTBENCH_GPU"]))
