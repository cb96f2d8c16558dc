"""Train one stage of a small voice-cloning model.

python train.py --stage s2
python train.py --stage s1 --fault nan --fault-after 100
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# The folder above holds the package, whether this file runs as a script or as a module, from wherever. It goes to the
# end of the path, so that nothing in it can hide an installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from voice_clone.faults import FAULTS
from voice_clone.settings import Settings, default_threads


def main() -> None:
    # OpenMP's threads spin while they wait for each other. On cores shared with other programs an iteration then takes
    # seconds instead of a tenth of one. The library reads this once, when torch is imported; ranks inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parser = make_parser()
    settings = check(parser, parser.parse_args())
    # Imported this late because torch takes seconds, and a mistyped option should be told at once.
    from voice_clone import s1, s2
    from voice_clone.speech import open_corpus

    try:
        open_corpus(settings.output / "data")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: no training data: {error}\n")
    print(f"stage {settings.stage} on {settings.device}, fault {settings.fault}, output {settings.output}", flush=True)
    {"s1": s1.train, "s2": s2.train}[settings.stage](settings)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def make_parser() -> argparse.ArgumentParser:
    faults = "\n".join(f"  {name:14} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in FAULTS.items())
    parser = Parser(
        prog="train.py",
        description="Train one stage of a small voice-cloning model.",
        epilog=f"faults:\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stage", choices=("s2", "s1"), required=True, help="s2: VAE and discriminator; s1: token model")
    add("--epochs", type=at_least(1), default=None, metavar="N", help="default: about three minutes on two cores")
    add("--batch-size", type=at_least(1), default=8, metavar="N", help="of one rank (default 8)")
    add("--workers", type=at_least(0), default=2, metavar="N", help="processes that load data (default 2)")
    add("--steps", type=at_least(0), default=0, metavar="N", help="stop after N iterations; 0: no limit (default)")
    add("--seed", type=at_least(0), default=1234, metavar="N")
    add("--world-size", type=at_least(1), default=1, metavar="N", help="ranks, stage s2 only (default 1)")
    add("--output", type=Path, default=Path(__file__).resolve().parent / "output", metavar="DIR")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=at_least(1), default=None, metavar="N", help="torch threads of a rank (default: by cores)")
    add("--log-every", type=at_least(1), default=10, metavar="N", help="iterations between log entries (default 10)")
    add("--fault", choices=FAULTS, default="none", metavar="NAME", help="see below (default none)")
    add("--fault-after", type=at_least(0), default=50, metavar="N", help="iterations before the fault (default 50)")
    add("--leak-limit-mb", type=at_least(0), default=2048, metavar="N", help="where leaks end; 0: never (default 2048)")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return parse


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Settings:
    """The settings, or a usage error for what argparse alone cannot see."""
    fault = FAULTS[arguments.fault]
    if arguments.stage not in fault.stages:
        parser.error(f"--fault {arguments.fault} needs --stage {fault.stages[0]}")
    if arguments.stage == "s1" and arguments.world_size > 1:
        parser.error("--world-size is for stage s2: s1 trains in one process")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is not a folder")
    device = arguments.device
    if device != "cpu":
        device = find_device(parser, device)
    if fault.needs_cuda and device != "cuda":
        parser.error(f"--fault {arguments.fault} needs a CUDA device")
    values = vars(arguments) | {
        "device": device,
        "epochs": arguments.epochs or DEFAULT_EPOCHS[arguments.stage],
        "threads": arguments.threads or default_threads(arguments.world_size),
        "output": arguments.output.resolve(),
    }
    return Settings(**values)


def find_device(parser: argparse.ArgumentParser, asked: str) -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        parser.error("--device cuda: torch finds no CUDA device")
    return "cpu"


DEFAULT_EPOCHS = {"s2": 16, "s1": 20}


if __name__ == "__main__":
    main()
