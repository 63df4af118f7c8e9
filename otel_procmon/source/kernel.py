"""What `capture` asks of the kernel's events, whoever loaded the program: `source.ebpf` or `source.bcc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.source.ebpf import KindCounts
    from otel_procmon.wire import Kind


class KernelSource(Protocol):
    """An open source of the records of ``bpf/procmon.h``. `EbpfSource` says what each of these does."""

    @property
    def read_before(self) -> int:
        """How many records earlier agents have read and committed."""

    @property
    def position(self) -> int:
        """Up to where records were read, for `commit`."""

    def read(self, timeout_s: float) -> list[bytes]:
        """Records that wait. Waits up to `timeout_s`."""

    def commit(self, position: int) -> None:
        """The records up to `position` are not needed any more."""

    def filled(self) -> float:
        """Which part of the ring is taken."""

    def snapshot(self, is_known: Callable[[bytes], bool]) -> list[bytes]:
        """A record of every process that runs now. Raises `SourceError`."""

    def counts(self) -> dict[Kind, KindCounts]:
        """What the kernel side counted."""

    def misses(self) -> int:
        """How many runs the kernel left out."""

    def detach(self) -> None:
        """No more records are made."""

    def close(self) -> None:
        """Unload."""
