"""BPF programs as the kernel counts them, by libbpf: bpftool is not installed everywhere."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


def loaded_programs() -> set[int]:
    """Ids of all programs that are loaded, whosever they are. OSError if the kernel does not tell."""
    ids: set[int] = set()
    number = ctypes.c_uint32(0)
    while _libbpf.bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        ids.add(number.value)
    if ctypes.get_errno() != errno.ENOENT:
        raise OSError(ctypes.get_errno(), "bpf_prog_get_next_id")
    return ids


def pinned_program(path: Path) -> int:
    """Id of the program that is pinned at `path`. OSError if there is none."""
    fd: int = _libbpf.bpf_obj_get(os.fsencode(path))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf_obj_get", str(path))
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    finally:
        os.close(fd)
    (number,) = [int(line.split()[1]) for line in lines if line.startswith("prog_id:")]
    return number
