"""CUDA devices as torch shows them, on a machine without: copied into a run's PYTHONPATH by the tests that need one.

Only the edge is replaced: the functions of `torch.cuda` and `torch._C` that the hooks may call. A device is a clock: what
is queued on it ends when it would on a device that runs beside the host, and what is read too early is wrong. Calls
that would wait for the device, and those that the hooks have no business with, are counted and refused.
"""

from __future__ import annotations

import collections
import functools
import json
import threading
import time
from typing import Any

GARBAGE = 1e-22


class Fake:
    """All devices of the process."""

    def __init__(self) -> None:
        self.initialized = False
        self.capturing = False
        self.held = False
        self.history = False
        self.observers_allowed = True
        self.statistics_allowed = True
        self.current = 0
        self.free_at = collections.defaultdict[int, float](float)  # when a device will have done what is queued
        self.memory = [memory() for _ in range(4)]
        self.calls: collections.Counter[str] = collections.Counter()
        self.refused: list[str] = []
        self.statistics_times: list[float] = []
        self.where: dict[int, Any] = {}
        self.kept: list[Any] = []
        self.copies: list[tuple[float, Any, Any]] = []
        self.observers: list[Any] = []
        self.events_made = 0
        self.snapshots = 0
        self.thread = threading.get_ident()
        self.queued = 0
        self.pinned: set[int] = set()
        self.copy_seconds = 0.0

    def init(self) -> None:
        """As torch.cuda.init() does: what waits for it is called before CUDA counts as initialised."""
        import torch

        if not self.initialized:
            for call, _ in torch.cuda._queued_calls[self.queued :]:
                call()
            self.initialized = True

    def refuse(self, what: str) -> None:
        self.refused.append(what)
        raise AssertionError(f"unexpected on this device: {what}")

    def work(self, seconds: float, device: int = 0) -> None:
        """Queue something that takes so long."""
        self.free_at[device] = max(self.free_at[device], time.perf_counter()) + seconds

    def put(self, tensor: Any, device: int = 0, kind: str = "cuda") -> Any:
        """Let a tensor, and all that share its memory, claim to be on a device."""
        import torch

        self.kept.append(tensor)
        self.where[tensor.untyped_storage().data_ptr()] = torch.device(kind, device)
        return tensor

    def claimed(self, tensor: Any) -> Any:
        import torch

        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        try:
            return self.where.get(tensor.untyped_storage().data_ptr() or -1)
        except Exception:  # no storage: sparse, meta, batched
            return None

    def use(self, device: int, allocated: int, reserved: int | None = None) -> None:
        """The allocator now has so much in use."""
        about = self.memory[device]
        about["allocated_bytes"]["all"]["current"] = allocated
        peak = about["allocated_bytes"]["all"]
        peak["peak"] = max(peak["peak"], allocated)
        about["reserved_bytes"]["all"]["current"] = reserved or allocated

    def run_out(self, requested: int, device: int = 0) -> None:
        """An allocation fails, in autograd's thread, as they mostly do."""
        import torch

        self.memory[device]["num_ooms"] += 1
        for observer in self.observers:
            thread = threading.Thread(target=observer, args=(device, requested, 24 << 30, 1 << 20))
            thread.start()
            thread.join()
        text = (
            f"CUDA out of memory. Tried to allocate {requested / 2**30:.2f} GiB. GPU {device} has a total capacity of"
        )
        raise torch.OutOfMemoryError(text)

    def arrive(self) -> None:
        now = time.perf_counter()
        for _, place, value in [copy for copy in self.copies if copy[0] <= now]:
            plain_copy(place, value)
        self.copies = [copy for copy in self.copies if copy[0] > now]

    def report(self, **more: Any) -> None:
        """Print what happened, for the test to judge."""
        about = {"refused": self.refused, "calls": dict(self.calls), "events_made": self.events_made}
        print(json.dumps({**about, "statistics_times": self.statistics_times, "snapshots": self.snapshots, **more}))


def memory() -> dict[str, Any]:
    """The allocator's statistics, as torch nests them."""
    pools = ("allocated_bytes", "reserved_bytes", "inactive_split_bytes")
    return {**{name: {"all": {"current": 0, "peak": 0}} for name in pools}, "num_alloc_retries": 0, "num_ooms": 0}


fake = Fake()


class Stream:
    def __init__(self, device: int) -> None:
        self.device = device

    def synchronize(self) -> None:
        fake.refuse("Stream.synchronize")


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.timing = enable_timing
        self.device: int | None = None
        self.at = float("inf")
        fake.events_made += 1

    def record(self, stream: Stream) -> None:
        fake.calls["record"] += 1
        if fake.capturing:
            fake.refuse("Event.record during a capture")
        if threading.get_ident() != fake.thread:
            fake.refuse("Event.record on another thread")
        if self.device not in (None, stream.device):
            fake.refuse("an event of another device")
        self.device = stream.device
        self.at = max(fake.free_at[stream.device], time.perf_counter())

    def query(self) -> bool:
        fake.calls["query"] += 1
        if fake.capturing or threading.get_ident() != fake.thread:
            fake.refuse("Event.query during a capture or on another thread")
        fake.arrive()
        return not fake.held and time.perf_counter() >= self.at

    def elapsed_time(self, end: Event) -> float:
        if not (self.timing and end.timing and self.query() and end.query()):
            fake.refuse("elapsed_time of events that have not both completed")
        if self.device != end.device:
            fake.refuse("elapsed_time between devices")
        return (end.at - self.at) * 1e3

    def synchronize(self) -> None:
        fake.refuse("Event.synchronize")

    wait = synchronize


class Properties:
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    total_memory = 1000

    def __init__(self, index: int) -> None:
        self.uuid = f"{index}1234567-89ab-cdef-0123-456789abcdef"
        self.name = "NVIDIA H100 80GB HBM3" + (" MIG 1g.10gb" if index == 3 else "")


def statistics(device: int) -> dict[str, Any]:
    fake.calls["statistics"] += 1
    fake.statistics_times.append(time.perf_counter())
    if not fake.statistics_allowed:
        raise RuntimeError("this allocator does not support statistics")
    return json.loads(json.dumps(fake.memory[device]))  # type: ignore[no-any-return]


def attach_observer(observer: Any) -> None:
    if not fake.observers_allowed:
        raise RuntimeError("this allocator does not support attachOutOfMemoryObserver")
    fake.observers.append(observer)


def segments() -> list[dict[str, Any]]:
    fake.snapshots += 1
    blocks = [{"size": size << 20, "state": state} for size, state in ((1, "active_allocated"), (7, "inactive"))]
    about = {"segment_type": "large", "total_size": 8 << 20, "stream": 0, "blocks": blocks}
    return [{**about, "device": device} for device in (0, 1)]


plain_copy: Any = None


def prepare() -> None:
    """Put the fake in place between the import of torch and the hooks' installation."""
    from trainvitals import instruments

    install = instruments.install_torch

    def install_on_fake(context: Any) -> None:
        if plain_copy is None:
            replace()
        install(context)

    instruments.install_torch = install_on_fake


def replace() -> None:
    """Replace what the hooks may call."""
    import torch

    fake.queued = len(torch.cuda._queued_calls)  # those are torch's own
    torch.backends.cuda.is_built = lambda: True
    cuda: Any = torch.cuda
    cuda.is_initialized = lambda: fake.initialized
    cuda.init = cuda._lazy_init = fake.init
    cuda.device_count = lambda: len(fake.memory)
    cuda.current_device = lambda: fake.current
    cuda.current_stream = lambda device=None: Stream(device.index if isinstance(device, torch.device) else device)
    cuda.is_current_stream_capturing = lambda: fake.capturing
    cuda.memory_stats_as_nested_dict = statistics
    cuda.memory_snapshot = segments
    cuda.memory._snapshot = lambda: {"segments": segments(), "device_traces": [[]]}
    cuda.get_device_properties = Properties
    cuda.Event = Event
    functions: Any = torch._C
    functions._cuda_attach_out_of_memory_observer = attach_observer
    functions._cuda_isHistoryEnabled = lambda: fake.history
    for name in ("synchronize", "memory_stats", "memory_allocated", "reset_peak_memory_stats", "empty_cache"):
        setattr(cuda, name, functools.partial(fake.refuse, name))
    replace_tensors(torch)


def replace_tensors(torch: Any) -> None:
    """Let tensors of the CPU claim to be on a device, and count who waits for their values."""
    global plain_copy
    base, tensor_class = torch._C.TensorBase, torch.Tensor
    plain_copy, zeros = base.copy_, torch.zeros
    tensor_class.device = property(lambda self: fake.claimed(self) or base.device.__get__(self))
    tensor_class.is_cpu = property(lambda self: fake.claimed(self) is None and base.is_cpu.__get__(self))
    tensor_class.is_cuda = property(lambda self: fake.claimed(self) is not None)

    def waits(name: str) -> Any:
        original = getattr(base, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if fake.claimed(self) is not None:
                fake.refuse(f"Tensor.{name} of a device's tensor")
            return original(self, *args, **kwargs)

        return method

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        setattr(tensor_class, name, waits(name))

    def copy_(self: Any, source: Any, non_blocking: bool = False) -> Any:
        device = fake.claimed(source)
        if device is None or fake.claimed(self) is not None:
            return plain_copy(self, source, non_blocking)
        if not non_blocking or self.untyped_storage().data_ptr() not in fake.pinned:
            fake.refuse("a copy to the host that waits")
        fake.copies.append((max(fake.free_at[device.index], time.perf_counter()), self, source.clone()))
        return plain_copy(self, torch.tensor(GARBAGE))

    def pinned_zeros(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        result = zeros(*args, **kwargs)
        if pin_memory:
            fake.pinned.add(result.untyped_storage().data_ptr())
        return result

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and str(args[0]).startswith(("cuda", "xpu")):
            time.sleep(fake.copy_seconds)
            device = torch.device(args[0])
            return fake.put(self.clone(), device.index or 0, device.type)
        return base.to(self, *args, **kwargs)

    tensor_class.copy_ = copy_
    tensor_class.to = to
    tensor_class.cuda = lambda self, *args, **kwargs: self.to("cuda", **kwargs)
    torch.zeros = pinned_zeros
    for owner, name in ((torch, "stack"), (torch.linalg, "vector_norm"), (torch, "_foreach_norm")):
        setattr(owner, name, stays_there(getattr(owner, name)))


def stays_there(function: Any) -> Any:
    """A function whose results are on the device of its first argument."""

    def on_device(first: Any, *args: Any, **kwargs: Any) -> Any:
        device = fake.claimed(first[0] if isinstance(first, (list, tuple)) else first)
        result = function(first, *args, **kwargs)
        if device is not None:
            for each in result if isinstance(result, (list, tuple)) else [result]:
                fake.put(each, device.index, device.type)
        return result

    return on_device
