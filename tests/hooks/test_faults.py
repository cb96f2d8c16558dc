"""Hooks that fail, in every place where they can: the training never hears of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import Launcher

# Attaches, trains and detaches again and again in one process, since torch takes longer to import than to train.
PRELUDE = (
    f"""
import collections, itertools, json, os, sys, tempfile, traceback
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, workout, trainvitals
from trainvitals import attachment, imports, instruments, rundir, runfile, session
from trainvitals.patching import Patches
from trainvitals.session import Session
"""
    + """
EPOCHS = 5
guarded, wrap = Session.guarded, Patches.wrap
def train(epochs=EPOCHS):
    return workout.train(Path(tempfile.mkdtemp()), epochs=epochs)
def attached(action):
    "What `action` returns while attached, and the run file."
    before = set(rundir.own().glob("*.vitals")) if rundir.own().exists() else set()
    trainvitals.attach()
    result = action()
    trainvitals.detach()
    assert dict(vars(torch.Tensor)) == tensor
    written = [runfile.read(path, os.getuid()) for path in set(rundir.own().glob("*.vitals")) - before]
    assert len(written) <= 1
    return result, written[0] if written else None
def errors(file):
    return {dict(s.labels)["hook"]: s.value for s in file.samples if s.name == "trainvitals_hook_errors_total"}
bare = train()
assert train() == bare  # the training itself repeats itself
tensor = dict(vars(torch.Tensor))
def trains_and_logs():
    result = train()
    for number in range(150): trainvitals.log(mos=float(number))
    return result
"""
)


ONCE_A_SECOND = {"compile"}


def run(launcher: Launcher, script: str) -> Any:
    """The last line that the script prints, as JSON. The script must end well and write nothing else on stderr."""
    command = [sys.executable, str(launcher.script(PRELUDE + script))]
    ended = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1]), ended.stderr


def test_every_guarded_hook_may_fail(launcher: Launcher) -> None:
    (report, calls), stderr = run(launcher, """
calls, raised = collections.Counter(), collections.Counter()
def sabotaged(victim, first, late):
    def make(self, name, function, **options):
        def sabotage(*args, **kwargs):
            calls[name] += 1
            if name == victim and calls[name] >= first:
                if late: function(*args, **kwargs)
                raised[name] += 1
                raise RuntimeError("sabotage")
            return function(*args, **kwargs)
        return guarded(self, name, sabotage, **options)
    return make
report = []
def attempt(victim, first, late):
    calls.clear(); raised.clear()
    Session.guarded = sabotaged(victim, first, late)
    result, file = attached(trains_and_logs)
    assert result == bare, (victim, first, late)
    if raised[victim]:
        counted = None if file is None else errors(file)
        report.append((victim, first, late, raised[victim], counted))
attempt(None, 0, False)
seen = dict(calls)
for name, times in seen.items():
    for late in (False, True):
        attempt(name, 1, late)
    if times >= 100: attempt(name, 100, False)
print(json.dumps([report, seen]))
""")  # fmt: skip
    # Every name that the hooks have, none left out; the often called ones a second time.
    assert {victim for victim, first, *_ in report if first == 1} == set(calls)
    assert {"install", "dataloader", "backward", "optimizer", "gradient_norm", "amp", "log", "undo"} <= set(calls)
    assert {victim for victim, first, *_ in report if first == 100} == {name for name, n in calls.items() if n >= 100}
    assert {"backward", "optimizer", "dataloader"} <= {name for name, n in calls.items() if n >= 100}
    for victim, first, late, raised, counted in report:
        case = (victim, first, late)
        # switched off after ten, and all of them counted, if there is a file to count them in
        if victim == "install":  # the one of the core keeps the others from being tried, and there is no file then
            assert raised <= 10, case
            assert counted in (None, {victim: raised}), case
        else:
            # What failed may be tried again. Some is called once a second, so how often depends on the machine.
            wanted = 1 if victim in ONCE_A_SECOND else min(10, calls[victim] - first + 1)
            assert wanted <= raised <= 10, case
            # What was not told of the beginning may fail in its turn.
            assert counted == {victim: raised} or (victim == "armed" and counted[victim] == raised), case
    assert "Traceback" not in stderr


def test_what_is_not_guarded_may_fail(launcher: Launcher) -> None:
    report, stderr = run(launcher, """
wraps = []
def spy(self, owner, name, make):
    wraps.append(name)
    if len(wraps) == fails_at: raise AttributeError(name)
    wrap(self, owner, name, make)
Patches.wrap = spy
short = train(1)
fails_at = 0
attached(lambda: train(1))
total = len(wraps)
counted = []
for fails_at in range(1, total + 1):
    wraps.clear()
    result, file = attached(lambda: train(1))
    assert result == short, fails_at
    counted.append(None if file is None else errors(file).get("install"))
Patches.wrap = wrap

def half_made(self, owner, name, make):
    def breaks(original):
        make(original); raise TypeError("half made")
    wrap(self, owner, name, breaks)
Patches.wrap = half_made
assert attached(lambda: train(1))[0] == short
Patches.wrap = wrap

def stubborn(self, owner, name, make):
    wrap(self, owner, name, make)
    self.on_undo(lambda: 1 / 0)
Patches.wrap = stubborn
result, file = attached(lambda: train(1))
assert result == short
undo_errors = errors(file)
Patches.wrap = wrap

put_off = []
def broken_actions(self, *args):
    session_init(self, *args); self.on_armed.insert(0, lambda writer: 1 / 0)
session_init = Session.__init__
Session.__init__ = broken_actions
assert attached(lambda: train(1))[0] == short
Session.__init__ = session_init
result, file = attached(lambda: train(1))
assert result == short and not errors(file)
print(json.dumps([total, counted, undo_errors]))
""")  # fmt: skip
    total, counted, undo_errors = report
    assert total > 10
    assert undo_errors == {"undo": 1}
    assert all(count in (None, 1) for count in counted)
    assert 1 in counted
    assert "Traceback" not in stderr


def test_the_script_s_own_exceptions_are_untouched(launcher: Launcher) -> None:
    """Seen from the script, an error has the same frames, cause and context as without; ours come on top at most."""
    different, _ = run(launcher, """
from torch import nn
from torch.utils.data import DataLoader
model = nn.Linear(4, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def fails(*_): raise KeyError("the script's own")
class Broken(workout.Numbers):
    def __getitem__(self, index): fails()
def in_the_data(): next(iter(DataLoader(Broken())))
def in_a_worker(): next(iter(DataLoader(Broken(), num_workers=1)))
def at_the_end():
    data = iter(DataLoader(workout.Numbers(), batch_size=40)); next(data); next(data)
def in_the_backward():
    loss = model(torch.ones(4)).sum(); loss.register_hook(fails); loss.backward()
def of_torch(): torch.ones(1).backward()
def in_a_closure(): optimizer.step(fails)
def in_a_hook_of_the_step():
    handle = optimizer.register_step_pre_hook(fails)
    try: optimizer.step()
    finally: handle.remove()
def while_clipping(): torch.nn.utils.clip_grad_norm_(list(model.parameters()), "much")
def while_saving(): torch.save(fails, "/nowhere/at/all")
def while_handling():
    try: fails()
    except KeyError:
        model(torch.ones(4)).sum().backward(); optimizer.step()
        assert isinstance(sys.exc_info()[1], KeyError)
        in_the_backward()
def from_another():
    try: fails()
    except KeyError as error: raise ValueError("worse") from error
def seen(action):
    try: action()
    except BaseException as error: return told(error)
    assert False, action
ours = os.path.dirname(trainvitals.__file__)
def told(error):
    if error is None: return None
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((ours, "<trainvitals"))]
    return [type(error).__name__, str(error).partition("File ")[0], frames, told(error.__cause__), told(error.__context__), error.__suppress_context__]
actions = [in_the_data, in_a_worker, at_the_end, in_the_backward, of_torch, in_a_closure, in_a_hook_of_the_step,
           while_clipping, while_saving, while_handling, from_another]
def all_of_them(): return [seen(action) for action in actions]
without = all_of_them()
different = []
def every_hook_raises(self, name, function, **options):
    def raises(*args, **kwargs): function(*args, **kwargs); raise RuntimeError("sabotage")
    return guarded(self, name, raises if name != "install" else function, **options)
for make in (guarded, every_hook_raises):
    Session.guarded = make
    got, file = attached(lambda: (train(1), all_of_them())[1])
    assert file is not None
    different += [(make.__name__, a.__name__, x, y) for a, x, y in zip(actions, without, got) if x != y]
print(json.dumps(different))
""")  # fmt: skip
    assert different == []


def test_a_signal_handler_s_exception_is_the_script_s(launcher: Launcher) -> None:
    """A handler may run in the middle of a hook; what it raises (a timeout) must not be taken for the hook's error."""
    report, _ = run(launcher, """
import functools, signal
class Timeout(Exception): pass
class Handler:
    def __call__(self, *_): raise Timeout
    def method(self, *_): raise Timeout
def function(*_): raise Timeout
caught = []
def interrupted(self, name, function, **options):
    def in_the_middle(*args, **kwargs):
        if name == "optimizer": signal.raise_signal(signal.SIGUSR1)
        return function(*args, **kwargs)
    return guarded(self, name, in_the_middle, **options)
Session.guarded = interrupted
for handler in (function, Handler(), Handler().method, functools.partial(function), lambda *_: function()):
    signal.signal(signal.SIGUSR1, handler)
    def action():
        try: train(1)
        except Timeout: caught.append("the script's")
    _, file = attached(action)
    assert file is None or not errors(file)
signal.signal(signal.SIGUSR1, lambda *_: None)
result, file = attached(lambda: train(1))
print(json.dumps([caught, errors(file)]))
""")  # fmt: skip
    assert report == [["the script's"] * 5, {}]
