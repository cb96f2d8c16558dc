"""What is replaced stays what it was to everybody who looks at it, and is put back whenever trainvitals is detached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import Launcher, run_files

# Knows of everything that is replaced, since it sees the one function that replaces.
PRELUDE = (
    f"""
import atexit, contextlib, copy, gc, importlib, importlib.util, inspect, json, multiprocessing.util, os, pickle, signal, sys, tempfile
import threading, typing
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, workout, trainvitals
from torch.optim import optimizer as torch_optimizer
from trainvitals import attachment, instruments
from trainvitals.patching import Patches
"""
    + """
replaced, wrap = {}, Patches.wrap
def spy(self, owner, name, make):
    before = inspect.getattr_static(owner, name, None)
    wrap(self, owner, name, make)
    if before is not None: replaced[owner, name] = before, inspect.getattr_static(owner, name)
Patches.wrap = spy
def train(epochs=1): return workout.train(Path(tempfile.mkdtemp()), epochs=epochs)
def put_back():
    return [f"{owner}.{name}" for (owner, name), (before, _) in replaced.items() if inspect.getattr_static(owner, name) is not before]
def surroundings():
    return {
        "optimizer hooks": [list(torch_optimizer._global_optimizer_pre_hooks), list(torch_optimizer._global_optimizer_post_hooks)],
        "excepthook": repr(sys.excepthook), "finders": [repr(f) for f in sys.meta_path], "gc": len(gc.callbacks),
        "threads": threading.active_count(), "fds": sorted(os.listdir("/proc/self/fd")), "atexit": atexit._ncallbacks(),
        "finalizers": len(multiprocessing.util._finalizer_registry), "environment": dict(os.environ), "wakeup": signal.set_wakeup_fd(-1),
    }
bare = train()
trainvitals.attach(); trainvitals.detach()  # what is once for all is done then
"""
)


def run(launcher: Launcher, script: str) -> Any:
    """The last line that the script prints, as JSON."""
    command = [sys.executable, str(launcher.script(PRELUDE + script))]
    ended = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_everything_replaced_looks_like_the_original(launcher: Launcher) -> None:
    names, different, left, around = run(launcher, """
for library in instruments.AFTER_TORCH:  # replaced as soon as they are imported
    with contextlib.suppress(ImportError): importlib.import_module(library)
before = surroundings()
trainvitals.attach()
def hints(function):
    try: return typing.get_type_hints(function)
    except NameError as error: return str(error)  # names that are there for type checkers only
def source(function):
    try: return inspect.getsource(function)
    except (OSError, TypeError): return None
def described(function, native):
    if native: return {"name": function.__name__, "doc": function.__doc__}  # a method written in C
    return {"name": function.__name__, "qualname": function.__qualname__, "module": function.__module__, "doc": function.__doc__,
            "signature": str(inspect.signature(function)), "source": source(function), "hints": hints(function),
            "dict": {k: v for k, v in getattr(function, "__dict__", {}).items() if k != "__wrapped__"}, "type": type(function),
            "coroutine": inspect.iscoroutinefunction(function), "generator": inspect.isgeneratorfunction(function)}
different = []
for (owner, name), (original, wrapper) in replaced.items():
    assert getattr(owner, name) is not original
    if type(wrapper) is not type(original) and hasattr(original, "__code__"): different.append([str(owner), name, "kind"])
    original, wrapper = getattr(original, "__func__", original), getattr(wrapper, "__func__", wrapper)
    native = not hasattr(original, "__code__")
    one, other = described(original, native), described(wrapper, native)
    different += [[str(owner), name, what, str(one[what]), str(other[what])] for what in one if one[what] != other[what]]
    def pickled(function):
        try: data = pickle.dumps(function); assert b"trainvitals" not in data; return pickle.loads(data) is function
        except (pickle.PicklingError, AttributeError): return None
    now = pickled(wrapper)
    setattr(owner, name, original); was = pickled(original); setattr(owner, name, replaced[owner, name][1])
    if was and not now: different.append([str(owner), name, "pickle", was, now])
    assert copy.deepcopy(wrapper) is wrapper and inspect.unwrap(wrapper) is inspect.unwrap(original)
names = [name for _, name in replaced]
trainvitals.detach()
after = surroundings()
print(json.dumps([names, different, put_back(), [[k, str(v), str(after[k])] for k, v in before.items() if v != after[k]]]))
""")  # fmt: skip
    assert {"backward", "__next__", "step", "add_summary", "_get_total_norm"} <= set(names)
    assert different == []
    assert left == []
    assert around == []


def test_switched_on_and_off_wherever_and_whenever(launcher: Launcher) -> None:
    """In the middle of an epoch, and in every callback that a script can have."""
    report = run(launcher, """
def toggle(*_):
    global times
    times += 1
    if attachment._attachment is None: trainvitals.attach()
    else: trainvitals.detach()
class Data(workout.Numbers):
    def __getitem__(self, index): toggle(); return super().__getitem__(index)
@contextlib.contextmanager
def in_the_data():
    numbers, workout.Numbers = workout.Numbers, Data
    try: yield
    finally: workout.Numbers = numbers
@contextlib.contextmanager
def in_a(register):
    handle = register(toggle)
    try: yield
    finally: handle.remove()
@contextlib.contextmanager
def in_every_optimizer(register):
    init = torch.optim.Optimizer.__init__
    def __init__(self, *args, **kwargs): init(self, *args, **kwargs); register(self, toggle)
    torch.optim.Optimizer.__init__ = __init__
    try: yield
    finally: torch.optim.Optimizer.__init__ = init
@contextlib.contextmanager
def in_a_closure():
    closure = workout._closure
    def toggles(*args): toggle(); loss = closure(*args); toggle(); return loss
    workout._closure = toggles
    try: yield
    finally: workout._closure = closure
@contextlib.contextmanager
def in_a_signal_handler():
    def toggles(_, frame):
        while frame is not None and frame.f_code.co_filename != attachment.__file__: frame = frame.f_back
        if frame is None: toggle()  # not in the middle of another attach() or detach()
        signal.setitimer(signal.ITIMER_REAL, 0.003)
    handler = signal.signal(signal.SIGALRM, toggles); toggles(0, None)
    try: yield
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, handler)
Optimizer, module = torch.optim.Optimizer, torch.nn.modules.module
places = {
    "data": in_the_data(), "forward": in_a(module.register_module_forward_hook), "closure": in_a_closure(),
    "backward": in_a(module.register_module_full_backward_hook), "signal handler": in_a_signal_handler(),
    "step begins": in_every_optimizer(Optimizer.register_step_pre_hook), "step ends": in_every_optimizer(Optimizer.register_step_post_hook),
}
report = {}
for place, inside in places.items():
    before, times = surroundings(), 0
    with inside: result = train()
    trainvitals.detach()
    after = surroundings()
    report[place] = [times, result == bare, put_back(), [[k, str(v), str(after[k])] for k, v in before.items() if v != after[k]]]
print(json.dumps(report))
""")  # fmt: skip
    assert len(report) == 7
    for place, (times, same, left, around) in report.items():
        assert times > 5, place
        assert same, place
        assert left == [], place
        assert around == [], place


def test_another_library_s_patches_over_ours_stay(launcher: Launcher) -> None:
    trainings, calls, left = run(launcher, """
import functools
calls = dict.fromkeys(("attached", "detached", "again", "put back"), 0)
trainvitals.attach()
others = {}
for (owner, name), (before, ours) in list(replaced.items()):
    def other(*args, _now=getattr(owner, name), **kwargs):
        calls[stage] += 1
        return _now(*args, **kwargs)
    others[owner, name] = functools.wraps(getattr(owner, name))(other)
    setattr(owner, name, others[owner, name])
trainings = []
stage = "attached"; trainings.append(train() == bare)
trainvitals.detach()
stage = "detached"; trainings.append(train() == bare)
kept = [inspect.getattr_static(owner, name) is other for (owner, name), other in others.items()]
trainvitals.attach()
stage = "again"; trainings.append(train() == bare)
trainvitals.detach()
assert kept == [inspect.getattr_static(owner, name) is other for (owner, name), other in others.items()] and all(kept)
for (owner, name), other in others.items(): setattr(owner, name, other.__wrapped__)
stage = "put back"; trainings.append(train() == bare)  # through what is left of us
print(json.dumps([trainings, calls, attachment._attachment is None]))
""")  # fmt: skip
    assert trainings == [True] * 4
    assert min(calls["attached"], calls["detached"], calls["again"]) > 100
    assert calls["put back"] == 0
    assert left


def test_an_excepthook_that_somebody_else_has_chained_is_silent_after_detach(launcher: Launcher) -> None:
    """As rich's or a notebook's: it goes on calling the one that it found, which was ours."""
    script = launcher.script("""
import os, sys, torch, trainvitals
os.environ["TRAINVITALS_RUN_ID"] = "run"  # as in a process that is to note its end
trainvitals.attach()
ours = sys.excepthook
sys.excepthook = lambda *error: ours(*error)
if len(sys.argv) > 1: trainvitals.detach()
raise ValueError("the script's own")
""")
    for arguments, written in (([], 1), (["detach"], 0)):
        command = [sys.executable, str(script), *arguments]
        ended = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=False)
        assert ended.stderr.count("Traceback") == 1
        assert ended.stderr.endswith("ValueError: the script's own\n")
        files = run_files(launcher.run_dir)
        assert len(files) == written, arguments
        for file in files:
            file.path.unlink()
