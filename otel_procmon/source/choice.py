"""Which loader the kernel's events are taken with: CO-RE where the kernel has BTF, else BCC where that can work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from otel_procmon.source.bcc_program import missing
from otel_procmon.source.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

    from otel_procmon.source.bcc_program import Places

LOADERS: Final = ("auto", "ebpf", "bcc")
"""Sources that are this host's kernel."""


class Choice(NamedTuple):
    """A loader, and why it is that one."""

    loader: Literal["ebpf", "bcc"]
    why: str


def choose(btf: Path, places: Places, release: str) -> Choice:
    """The loader for the kernel `release`. Raises `SourceError` with what to install if neither can work."""
    if btf.exists():
        return Choice("ebpf", f"this kernel has type information ({btf})")
    problem = missing(places, release)
    if problem is None:
        return Choice("bcc", f"this kernel has no type information ({btf}), but BCC and its headers are there")
    raise SourceError(
        f"This kernel gives no type information ({btf} is missing), and BCC, which does without, cannot work: "
        f"{problem}; or boot a kernel that was built with CONFIG_DEBUG_INFO_BTF=y, as those of Debian since 11 and "
        "Ubuntu since 20.10 are."
    )
