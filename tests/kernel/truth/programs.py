"""BPF programs as the kernel counts them, by libbpf: bpftool is not installed everywhere."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from otel_procmon.source.libbpf import SONAME, Library


def loaded_programs() -> set[int]:
    """Ids of all programs that are loaded, whosever they are. OSError if the kernel does not tell."""
    # Here, as these tests are collected where there is no libbpf, too.
    lib = ctypes.CDLL(SONAME)
    ids: set[int] = set()
    number = ctypes.c_uint32(0)
    while (result := lib.bpf_prog_get_next_id(number, ctypes.byref(number))) == 0:
        ids.add(number.value)
    if result != -errno.ENOENT:
        raise OSError(-result, "bpf_prog_get_next_id")
    return ids


def pinned_program(path: Path) -> int:
    """Id of the program that is pinned at `path`. BpfError if there is none."""
    fd = Library().pinned(path)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    finally:
        os.close(fd)
    (number,) = [int(line.split()[1]) for line in lines if line.startswith("prog_id:")]
    return number
