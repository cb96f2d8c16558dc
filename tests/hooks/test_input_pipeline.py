"""What is recorded of the DataLoader that training reads from: waits, samples, settings, and where its files lie."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from trainvitals.dataset_files import places_of
from trainvitals.mounts import MountTable

from tests.hooks.together import Recorded, loop, recorded_fixture

recorded = recorded_fixture()

PRELUDE = """
from torch.utils.data import BatchSampler, ConcatDataset, RandomSampler, Subset
class Items(Dataset):
    def __init__(self, n=64, seconds=0.0, **attributes):
        self.n, self.seconds = n, seconds
        for name, value in attributes.items(): setattr(self, name, value)
    def __len__(self): return self.n
    def __getitem__(self, i): time.sleep(self.seconds); return torch.randn(4), torch.randn(1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def train(batches):
    for x, y in batches: optimizer.zero_grad(); loss_of(x, y).backward(); optimizer.step()
def evaluate(batches):
    with torch.no_grad():
        for x, y in batches: loss_of(x, y)
"""


def waits(recorded: Recorded) -> dict[str, float]:
    """Waits by their bucket's upper bound, without the empty ones."""
    return {bound: count for bound, count in recorded.family("batch_wait_seconds_bucket", "le").items() if count}


@loop("""
for epoch in range(2):
    train(DataLoader(Items(6, seconds=0.06), batch_size=1))
    evaluate(DataLoader(Items(4, seconds=0.3), batch_size=1))
""", PRELUDE)  # fmt: skip
def test_waits_are_those_of_training(recorded: Recorded) -> None:
    found = waits(recorded)
    assert sum(found.values()) == 12 == recorded.value("iterations_total")
    assert all(float(bound) > 0.06 for bound in found)
    inside, data_wait = recorded.value("batch_wait_seconds_sum"), recorded.family("phase_seconds_total", "phase")
    assert inside is not None
    assert 12 * 0.06 <= inside <= data_wait["data_wait"] + 1e-6
    assert data_wait["other"] >= 8 * 0.3  # evaluation's
    assert recorded.family("hook_errors_total", "hook") == {}


@loop("""
train(DataLoader(Items(20), batch_size=4))
train(DataLoader(Items(20), batch_size=2, num_workers=2, prefetch_factor=3, persistent_workers=True))
""", PRELUDE)  # fmt: skip
def test_settings_are_those_of_the_newest_loader(recorded: Recorded) -> None:
    assert recorded.value("dataloader_workers") == 2
    assert recorded.value("dataloader_prefetch_factor") == 3
    assert recorded.value("dataloader_persistent_workers") == 1
    assert recorded.value("dataloader_batch_size") == 2
    assert recorded.value("dataloader_pin_memory") == 0


@loop("""
train(DataLoader(Items(20), batch_size=2, num_workers=1))
train(DataLoader(Items(20), batch_sampler=[[1, 2, 3], [4]]))
""", PRELUDE)  # fmt: skip
def test_what_the_newest_loader_does_not_have_is_absent(recorded: Recorded) -> None:
    assert recorded.value("dataloader_workers") == 0
    for name in ("prefetch_factor", "persistent_workers", "batch_size"):
        assert recorded.value(f"dataloader_{name}") is None
    assert recorded.value("samples_total") == 20 + 4
    assert recorded.family("hook_errors_total", "hook") == {}


@loop("""
train(DataLoader(Items(21), batch_size=4))
evaluate(DataLoader(Items(64), batch_size=64))
train(DataLoader(Items(21), batch_size=4, drop_last=True, num_workers=2, shuffle=True))
class Whole(Items):
    def __getitem__(self, i): return torch.randn(16, 4), torch.randn(16, 1)
train(DataLoader(Whole(3), batch_size=None))  # only the dataset knows
""", PRELUDE)  # fmt: skip
def test_samples_are_counted_where_the_loader_tells_them(recorded: Recorded) -> None:
    assert recorded.value("iterations_total") == 6 + 5 + 3
    assert recorded.value("samples_total") == 21 + 20


@loop("""
import pathlib
disk, memory = os.path.abspath("."), "/dev/shm"
open("list.txt", "w").close()
os.symlink("/dev/shm", "elsewhere")
first = Items(8, data_dir=disk, transform=None, words=["and/or", "x"], samples=[(pathlib.Path("list.txt"), 0)])
true(first=disk, memory=memory)
train(DataLoader(ConcatDataset([Subset(first, range(4)), Items(4, root="elsewhere")]), batch_size=4))
""", PRELUDE)  # fmt: skip
def test_where_the_files_lie(recorded: Recorded) -> None:
    found = [dict(s.labels) for s in recorded.rank.samples if s.name == "trainvitals_dataloader_dataset_info"]
    by_mountpoint = {labels["mountpoint"]: labels["device"] for labels in found}
    expected = {}
    for path in (recorded.true["first"], recorded.true["memory"]):
        told = subprocess.run(["df", "--output=target,fstype", path], capture_output=True, text=True, check=True)
        mountpoint, kind = told.stdout.splitlines()[1].split()
        expected[mountpoint] = kind
    assert by_mountpoint.keys() == expected.keys()
    for mountpoint, device in by_mountpoint.items():
        assert Path("/sys/block", device, "device").exists() or device == expected[mountpoint]


@loop("train(DataLoader(Items(8, root='/no/such/folder', split='train', names=['a/b', 'c/d']), batch_size=4))", PRELUDE)
def test_where_no_files_are_nothing_is_said(recorded: Recorded) -> None:
    assert recorded.family("dataloader_dataset_info", "mountpoint") == {}
    assert recorded.family("hook_errors_total", "hook") == {}


@loop("""
class Trap(Items):
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        raise RuntimeError(f"asked for {name}")
train(DataLoader(Trap(8, odd=object(), path=b"bytes", file="a\\0b", dirs={"a": {"b": {"c": ["x"] * 5}}}), batch_size=4))
""", PRELUDE)  # fmt: skip
def test_odd_datasets(recorded: Recorded) -> None:
    assert recorded.value("iterations_total") == 2
    assert recorded.family("hook_errors_total", "hook") == {}


@loop("""
from torch.utils.data import DistributedSampler
items = Items(16)
sampler = DistributedSampler(items, num_replicas=2, rank=0)
batches = DataLoader(items, batch_size=4, sampler=sampler)
sampler.set_epoch(7)
train(batches)
""", PRELUDE)  # fmt: skip
def test_the_epoch_that_the_sampler_is_told(recorded: Recorded) -> None:
    assert recorded.value("epoch") == 7


@loop("""
class Nested(Items):
    def __init__(self): super().__init__(8); self.inner = DataLoader(Items(4, seconds=0.01), batch_size=4)
    def __getitem__(self, i): return next(iter(self.inner))[0][0], torch.randn(1)
batches = DataLoader(Nested(), batch_size=2)
before = gc.collect()
for epoch in range(3): train(batches)
from torch.utils.data.dataloader import _BaseDataLoaderIter
gc.collect(); true(left=sum(isinstance(o, _BaseDataLoaderIter) for o in gc.get_objects()))
""", PRELUDE)  # fmt: skip
def test_a_loader_within_a_dataset_and_iterators_that_are_gone(recorded: Recorded) -> None:
    assert recorded.value("iterations_total") == 12
    assert recorded.value("samples_total") == 24
    assert recorded.value("dataloader_batch_size") == 2
    assert recorded.true["left"] == 0


@pytest.fixture
def machine(tmp_path: Path) -> MountTable:
    """Two disks with a partition each, a volume over both, a network share, and a folder with a blank in its name."""
    sys, mountinfo = tmp_path / "sys", tmp_path / "mountinfo"
    for disk in ("sda", "nvme0n1"):
        (sys / "devices" / disk / "device").mkdir(parents=True)
        (sys / "devices" / disk / f"{disk}1").mkdir()
        (sys / "devices" / disk / f"{disk}1" / "partition").write_text("1\n")
    (sys / "devices" / "dm-0" / "slaves").mkdir(parents=True)
    for disk in ("sda", "nvme0n1"):
        (sys / "devices" / "dm-0" / "slaves" / f"{disk}1").symlink_to(f"../../{disk}/{disk}1")
    (sys / "dev" / "block").mkdir(parents=True)
    for number, device in (("8:1", "sda/sda1"), ("253:0", "dm-0"), ("8:0", "sda")):
        (sys / "dev" / "block" / number).symlink_to(f"../../devices/{device}")
    (sys / "class" / "block").mkdir(parents=True)
    (sys / "class" / "block" / "sda1").symlink_to("../../devices/sda/sda1")
    mounts = (
        ("8:1", "/", "ext4", "/dev/sda1"),
        ("253:0", "/data", "xfs", "/dev/mapper/vg-data"),
        ("0:52", "/data/cache", "btrfs", "/dev/sda1"),
        ("0:60", f"{tmp_path}/share", "nfs4", "server:/export"),
        ("0:61", "/my\\040files", "fuse.sshfs", "user@host:"),
        ("0:62", "/data/hidden", "tmpfs", "tmpfs"),
        ("8:0", "/data/hidden", "ext4", "/dev/sda"),
    )
    lines = [
        f"{i} 1 {number} / {at} rw shared:1 - {kind} {source} rw" for i, (number, at, kind, source) in enumerate(mounts)
    ]
    mountinfo.write_text("\n".join(lines) + "\n")
    return MountTable(mountinfo, sys)


@pytest.mark.parametrize(
    ("path", "mountpoint", "disks"),
    [
        ("/home/user/a.wav", "/", ["sda"]),
        ("/data", "/data", ["nvme0n1", "sda"]),
        ("/database", "/", ["sda"]),
        ("/data/cache/x", "/data/cache", ["sda"]),
        ("/data/hidden/x", "/data/hidden", ["sda"]),
        ("/my files/x", "/my files", []),
    ],
)
def test_the_mount_of_a_path_and_its_disks(machine: MountTable, path: str, mountpoint: str, disks: list[str]) -> None:
    mount = machine.of(Path(path))
    assert mount is not None
    assert mount.mountpoint == mountpoint
    assert machine.disks(mount) == disks


def test_links_are_followed_up_to_what_may_not_answer(machine: MountTable, tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "far").symlink_to("/data")
    (tmp_path / "near").symlink_to("share")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "up").symlink_to("../..")
    assert machine.resolve(tmp_path / "near" / "far" / "x") == tmp_path / "share" / "far" / "x"
    assert machine.resolve(tmp_path / "near" / ".." / "y") == tmp_path / "y"
    assert machine.resolve(tmp_path / "up") == tmp_path.parent.parent
    assert machine.resolve(tmp_path / "round").name == "round"


def test_only_so_much_of_a_dataset_is_looked_at() -> None:
    class Endless(dict[str, object]):
        def __iter__(self) -> object:  # type: ignore[override]
            raise AssertionError

    class Big:
        def __init__(self) -> None:
            self.files = ["/no/such/file"] * 10_000_000
            self.more = {f"/no/{i}": i for i in range(1000)}
            self.odd = Endless()
            self.itself = self

    assert places_of(Big()) == set()
