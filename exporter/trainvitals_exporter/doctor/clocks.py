"""Does another machine have the time that this one has?"""

from __future__ import annotations

from typing import Final

from trainvitals_exporter.doctor.findings import Finding, not_checked, ok, warning

# Less than a scrape interval does not matter to any rule.
_SECONDS: Final = 5.0
_NAME: Final = "clocks"


def compare(whose: str, ahead: float | None) -> Finding:
    """`ahead` is by how many seconds the other's clock is ahead of ours, None where it is not known."""
    if ahead is None:
        return not_checked(_NAME, f"{whose} does not tell its time")
    if abs(ahead) > _SECONDS:
        return warning(
            _NAME, f"the clock of {whose} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this one",
            "let both follow a time server (timedatectl set-ntp true): alerts judge ages and stalls by the clock",
        )  # fmt: skip
    return ok(_NAME, f"{whose} and this one agree to {_SECONDS:.0f} s")
