"""From scrapes to what is seen, without a terminal."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from trainvitals_exporter.top.details import details
from trainvitals_exporter.top.model import Machine, MachineView, RunView
from trainvitals_exporter.top.overview import Choices, Picture, SourceView, overview
from trainvitals_exporter.top.samples import Parser
from trainvitals_exporter.top.sources import Scrape
from trainvitals_exporter.top.text import cells, chart, line_width, number, plain, size, spelled, stacked

from tests.top import scene
from tests.top.scene import NOW, sample


def watch(*scrapes: str, machine: Machine | None = None, begin: float = 0.0) -> MachineView:
    """What is seen after these scrapes, a second apart."""
    machine = machine or Machine("host")
    parser = Parser()
    for second, text in enumerate(scrapes):
        view = machine.update(Scrape(parser.parse(text), NOW + begin + second), begin + second)
    return view


def only_run(*scrapes: str) -> RunView:
    (run,) = watch(*scrapes).runs
    return run


def drawn(view: MachineView, width: int = 80, height: int = 24) -> str:
    picture = Picture((view,), (SourceView("host", None, ""),), (), "00:00:00")
    return "\n".join(plain(line) for line in overview(picture, Choices(), width, height))


def test_a_known_series_is_read_as_the_first_time() -> None:
    parser = Parser()
    text = 'trainvitals_loss{run="a } b\\"\\\\\\n",rank="0",optimizer="0"} {}\ntrainvitals_host_load1 3\n'
    first = parser.parse(text.replace("{}", "1.5"))
    second = parser.parse(text.replace("{}", "NaN"))
    ((labels, value),) = first.of("loss")
    assert (labels["run"], value) == ('a } b"\\\n', 1.5)
    ((labels, value),) = second.of("loss")
    assert labels["run"] == 'a } b"\\\n'
    assert math.isnan(value)
    assert second.value("host_load1") == 3


@pytest.mark.parametrize("text", ["trainvitals_loss{ 1\n", "trainvitals_loss\n", "trainvitals_loss{} one\n"])
def test_what_is_no_scrape_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        Parser().parse(text)


def test_nothing_known_is_blank_and_never_zero() -> None:
    run = only_run(scene.run_state("r", "starting"))
    assert (run.loss, run.norm, run.rate, run.memory, run.epoch, run.iterations) == (None,) * 6
    row = next(line for line in drawn(watch(scene.run_state("r", "starting"))).split("\n") if line.startswith("> r"))
    assert row.split() == [">", "r", "starting"]
    gpu = drawn(watch(sample("gpu_info", 1, gpu="0", uuid="GPU-0", name="GB10")))
    row = next(line for line in gpu.split("\n") if line.startswith(" 0 "))
    assert row.split() == ["0", "GB10"]


def test_no_runs_and_no_gpus_are_said_so() -> None:
    assert "no runs here" in drawn(watch("".join(scene.host(0))))
    assert "GPU" not in drawn(watch("".join(scene.host(0))))


def test_rates_are_those_of_the_counters_and_survive_a_reset() -> None:
    machine = Machine("host")
    assert watch("".join(scene.host(0)), machine=machine).host.cpu is None
    view = watch(*("".join(scene.host(second)) for second in range(1, 9)), machine=machine, begin=1)
    assert view.host.cpu == pytest.approx(0.41)
    assert dict(view.host.disks)["nvme0n1"] == pytest.approx(0.22)
    restarted = "".join(scene.host(0)).replace(" 1000.0", " 0.0")
    view = watch(restarted, machine=machine, begin=9)
    assert view.host.cpu is None
    assert view.host.disks == ()


def test_rates_count_the_time_between_collections_not_between_scrapes() -> None:
    def text(collected: float) -> str:
        stamp = sample("collector_last_success_timestamp_seconds", 100 + collected, collector="disks")
        return stamp + sample("host_disk_busy_seconds_total", 0.5 * collected, device="sda")

    view = watch(*(text(5 * (second // 5)) for second in range(14)))
    assert dict(view.host.disks)["sda"] == pytest.approx(0.5)


def test_phases_are_those_of_the_newest_minute() -> None:
    def text(forward: float, wait: float) -> str:
        return (scene.run_state("r", "running")
                + sample("phase_seconds_total", forward, run="r", rank="0", phase="forward")
                + sample("phase_seconds_total", wait, run="r", rank="0", phase="data_wait"))  # fmt: skip

    assert dict(only_run(text(900, 100)).phases) == {"forward": 0.9, "data_wait": 0.1}
    run = only_run(text(900, 100), text(901, 103))
    assert dict(run.phases) == {"forward": 0.25, "data_wait": 0.75}
    assert run.phases_are_recent


@pytest.mark.parametrize(("value", "shown"), [("NaN", "NaN"), ("+Inf", "+Inf"), ("-Inf", "-Inf")])
def test_a_loss_that_is_not_finite_is_red_whoever_has_it(value: str, shown: str) -> None:
    text = (
        scene.run_state("r", "running")
        + "".join(
            sample("run_info", 1, run="r", rank=rank) + sample("loss", 1.5, run="r", rank=rank, optimizer="0")
            for rank in "01"
        )
        + f'trainvitals_loss{{run="r",rank="1",optimizer="1"}} {value}\n'
    )
    run = only_run(text)
    picture = Picture((watch(text),), (SourceView("host", None, ""),))
    segments = [each for line in overview(picture, Choices(), 80, 24) for each in line]
    assert [style.split()[0] for text, style in segments if text.strip() == shown] == ["bad", "bad"]
    assert not math.isfinite(run.trends["loss"][1][-1] or 0.0)


def test_a_run_that_ends_keeps_its_values_and_its_trends_stop() -> None:
    training = ["".join(scene.run("r", 1, second)) for second in range(5)]
    done = training[-1].replace(scene.run_state("r", "running"), scene.run_state("r", "failed"))
    done += sample("run_exit_code", 137, run="r")
    run = only_run(*training, done, done)
    assert (run.state, run.ended, run.rate, run.elapsed) == ("failed", True, None, None)
    assert run.loss is not None
    assert len(run.trends["loss"][1]) == 5
    assert not run.phases_are_recent
    assert ("exit code", "137") in run.facts


def test_a_new_run_of_the_same_name_has_trends_of_its_own() -> None:
    old = "".join(scene.run("r", 1, 0))
    new = old.replace(str(NOW - 8000), str(NOW - 10))
    assert len(only_run(old, old, new).trends["loss"][1]) == 1


def test_a_run_without_a_sign_of_life_is_silent() -> None:
    text = "".join(scene.run("r", 1, 0))
    machine = Machine("host")
    assert watch(text, machine=machine).runs[0].silent is None
    view = watch(text, machine=machine, begin=45)
    assert view.runs[0].silent == pytest.approx(45.3)
    assert view.runs[0].rate is None
    assert "silent 45s" in drawn(view)


def test_who_uses_a_gpu() -> None:
    text = "".join([*scene.gpus(2, 0), *scene.run("two", 2, 0, gpus=2), *scene.ended("old", "killed")])
    text += sample("run_gpu_info", 1, run="old", rank="0", uuid="GPU-1")
    text += sample("gpu_process_memory_bytes", 1e9, uuid="GPU-1", gpu="1", pid="77", run="", rank="")
    assert [gpu.used_by for gpu in watch(text).gpus] == [("two r0",), ("two r1", "pid 77")]


def test_hostile_names_are_spelled_out_and_never_interpreted() -> None:
    hostile = "[red]x[/red]\\n\x1b[2J\u202e\x07"
    view = watch(scene.run_state(hostile, "running"))
    (run,) = view.runs
    assert all(character.isprintable() for character in run.name)
    assert run.name.startswith("[red]x[/red]")
    assert "[red]x[/red]" in drawn(view, 160, 40)


@pytest.mark.parametrize("width", [20, 40, 80, 100, 120, 133, 200, 300])
@pytest.mark.parametrize("height", [1, 5, 24, 60])
def test_every_line_fits_on_the_screen(width: int, height: int) -> None:
    picture = replace(scene.picture(10), remark="no exporter here")
    lines = overview(picture, Choices(), width, height)
    assert len(lines) == height
    assert [plain(line) for line in lines if line_width(line) > width] == []
    for run in picture.runs("name"):
        assert [plain(line) for line in details(run, width) if line_width(line) > width] == []


def test_of_many_runs_the_chosen_one_is_on_the_screen() -> None:
    view = watch("".join("".join(scene.run(f"run-{number:02}", 1, 0)) for number in range(64)))
    picture = Picture((view,), (SourceView("host", None, ""),))
    text = "\n".join(plain(line) for line in overview(picture, Choices(("host", "run-47"), "name"), 80, 24))
    assert "> run-47" in text
    assert "of 64" in text


def test_the_stale_source_says_for_how_long() -> None:
    picture = replace(scene.picture(2), sources=(SourceView("gpu-01", 7.4, "Connection refused"),))
    text = [plain(line) for line in overview(picture, Choices(), 80, 24)]
    assert " gpu-01: no answer for 7s: Connection refused" in text


def test_charts() -> None:
    assert plain(chart([0, 7], 0, 4, 1, "")[0]) == "  ▁█"
    assert [plain(line) for line in chart([0, 15], 0, 3, 2, "")] == ["  █", " ▁█"]
    assert plain(chart([1.0, None, math.nan, 1.0], 0, 5, 1, "")[0]) == " ▄ \N{MULTIPLICATION SIGN}▄"
    assert chart([], 0, 3, 1, "") == [[("   ", "")]]


def test_columns_of_a_chart_stay_what_they_were() -> None:
    values = [float(each % 13) for each in range(100)]
    before = plain(chart(values[:95], 0, 20, 1, "")[0]).strip()
    after = plain(chart(values[:96], 0, 20, 1, "")[0]).strip()
    assert len(before) == 19
    assert after.startswith(before)
    assert plain(chart(values[5:96], 5, 20, 1, "")[0]).strip() == after[1:]


def test_numbers_as_people_read_them() -> None:
    assert [number(each) for each in (None, 0.0, 0.00012, 1.5, 123.456, 2.5e9)] == [
        "", "0", "1.20e-04", "1.500", "123.5", "2.50e+09"]  # fmt: skip
    assert [size(each) for each in (None, 0.0, 999.0, 1023.9, 61.25 * 2**30, 512 * 2**30)] == [
        "", "0B", "999B", "1.0K", "61.2G", "512G"]  # fmt: skip


def test_shares_fill_the_bar() -> None:
    line = stacked([("forward", 0.5), ("other", 0.5)], 40)
    assert line_width(line) == 40
    assert "forward 50%" in plain(line)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251"])
def test_terminals_without_utf_8_get_what_they_can_show(encoding: str) -> None:
    for line in overview(scene.picture(5), Choices(), 120, 40):
        for text, _ in line:
            shown = spelled(text, encoding)
            shown.encode(encoding)
            assert len(shown) == cells(text)
