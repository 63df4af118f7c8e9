"""BCC as a loader, as far as it needs no kernel: what has to be there, which loader is chosen, what is compiled and kept."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import stat
import struct
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from otel_procmon.source import bcc, own_process
from otel_procmon.source.bcc_program import PROGRAMS, Places, compile_program, is_bcc, missing
from otel_procmon.source.choice import choose
from otel_procmon.source.errors import SourceError
from otel_procmon.source.kernel import PROC
from otel_procmon.source.own_process import read_self
from otel_procmon.wire import Head

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RELEASE = "6.1.0-0-test"
KERNEL = os.uname_result(("Linux", "host", RELEASE, "#1 SMP", "x86_64"))
ANSWER = {name: base64.b64encode(bytes([number]) * 16).decode() for number, name in enumerate(PROGRAMS)}


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Places]:
    """A root directory with what BCC needs, or without; its Python is a script that answers as the compiler does."""

    def make(
        *, installed: bool = True, headers: bool = True, python: str = "echo >>$0.log; cat <<'E'\n%s\nE\n"
    ) -> Places:
        if installed:
            write(tmp_path / "usr/lib/python3/dist-packages/bcc/libbcc.py", "")
            write(tmp_path / "usr/lib/python3/dist-packages/bcc/version.py", "__version__ = '0.26.0'")
            answer = python % json.dumps({"programs": ANSWER}) if "%s" in python else python
            write(tmp_path / "usr/bin/python3", f"#!/bin/sh\n{answer}", 0o755)
        if headers:
            (tmp_path / "lib/modules" / RELEASE / "build/include").mkdir(parents=True)
        return Places(tmp_path, tmp_path / "var/cache/otel-procmon")

    return make


def runs(places: Places) -> int:
    """How often the machine's Python was run."""
    log = places.python.with_name("python3.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


# What has to be there


def test_nothing_is_missing(machine: Callable[..., Places]) -> None:
    assert missing(machine(), RELEASE) is None


@pytest.mark.parametrize(
    ("installed", "headers", "command"),
    [
        (False, True, "apt-get install python3-bpfcc"),
        (True, False, f"apt-get install linux-headers-{RELEASE}"),
        (False, False, f"apt-get install python3-bpfcc linux-headers-{RELEASE}"),
    ],
)
def test_what_to_install(machine: Callable[..., Places], installed: bool, headers: bool, command: str) -> None:
    said = missing(machine(installed=installed, headers=headers), RELEASE)
    assert said is not None
    assert said.endswith(command)


def test_headers_that_this_user_may_not_read(
    machine: Callable[..., Places], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may read everything.
    def denied(*_: object) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/headers/include")

    monkeypatch.setattr(Places, "has_headers", denied)
    said = f"user {os.geteuid()} may not read the headers of this kernel (/root/headers/include)"
    assert missing(machine(), RELEASE) == said
    assert missing(Places(tmp_path / "nowhere"), RELEASE) == (
        f"BCC is not installed, and {said}: on Debian and Ubuntu, apt-get install python3-bpfcc"
    )


@pytest.mark.parametrize("place", ["usr/lib/python3/dist-packages/bcc", "usr/local/lib/python3.11/dist-packages/bcc"])
def test_pypis_bcc_is_another_package(machine: Callable[..., Places], tmp_path: Path, place: str) -> None:
    # What PyPI's has is a package of one module, for Bitcoin Cash.
    places = machine(installed=False)
    write(tmp_path / place / "__init__.py", "")
    write(tmp_path / "usr/bin/python3", "", 0o755)
    assert not is_bcc(tmp_path / place)
    said = missing(places, RELEASE)
    assert said is not None
    assert f"{tmp_path / place} is not it, but PyPI's package of the same name" in said
    assert said.endswith("apt-get install python3-bpfcc")


def test_debians_bcc_beside_pypis(machine: Callable[..., Places], tmp_path: Path) -> None:
    write(tmp_path / "usr/local/lib/python3.11/dist-packages/bcc/__init__.py", "")
    assert missing(machine(), RELEASE) is None


@pytest.mark.parametrize("there", ["sys/kernel/kheaders.tar.xz", f"lib/modules/{RELEASE}/kernel/kernel/kheaders.ko.xz"])
def test_headers_in_the_kernel_itself(machine: Callable[..., Places], tmp_path: Path, there: str) -> None:
    places = machine(headers=False)
    write(tmp_path / there, "")
    assert missing(places, RELEASE) is None


# Which loader


def test_co_re_where_there_is_type_information(machine: Callable[..., Places], tmp_path: Path) -> None:
    (tmp_path / "vmlinux").touch()
    assert choose(tmp_path / "vmlinux", machine(installed=False, headers=False), RELEASE).loader == "ebpf"
    assert choose(tmp_path / "vmlinux", machine(), RELEASE).loader == "ebpf"


def test_bcc_where_there_is_none(machine: Callable[..., Places], tmp_path: Path) -> None:
    assert choose(tmp_path / "vmlinux", machine(), RELEASE).loader == "bcc"


def test_neither(machine: Callable[..., Places], tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        choose(tmp_path / "vmlinux", machine(headers=False), RELEASE)
    said = str(error.value)
    assert f"{tmp_path / 'vmlinux'} is missing" in said
    assert f"apt-get install linux-headers-{RELEASE};" in said
    assert said.endswith(".")
    assert "\n" not in said


# Compiling


def test_what_was_compiled_is_kept(machine: Callable[..., Places]) -> None:
    places = machine()
    programs = compile_program({"A": 1}, places, [], KERNEL)
    assert programs == {name: bytes([number]) * 16 for number, name in enumerate(PROGRAMS)}
    assert compile_program({"A": 1}, places, [], KERNEL) == programs
    assert runs(places) == 1
    assert places.cache is not None
    assert stat.S_IMODE(places.cache.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in places.cache.iterdir()] == [0o600]


def test_it_is_compiled_again_for_something_else(machine: Callable[..., Places]) -> None:
    places = machine()
    compile_program({"A": 1}, places, [], KERNEL)
    compile_program({"A": 2}, places, [], KERNEL)
    rebuilt = os.uname_result(("Linux", "host", RELEASE, "#2 SMP", "x86_64"))
    compile_program({"A": 1}, places, [], rebuilt)
    write(places.package / "version.py", "__version__ = '0.31.0'")
    compile_program({"A": 1}, places, [], KERNEL)
    write(places.headers(RELEASE) / "include/linux/sched.h", "struct task_struct;")
    compile_program({"A": 1}, places, [], KERNEL)
    assert runs(places) == 5
    for number in range(10):
        compile_program({"A": number}, places, [], KERNEL)
    assert places.cache is not None
    assert len(list(places.cache.iterdir())) == 4, "of old ones not all are kept"


def test_what_others_can_write_is_not_used(machine: Callable[..., Places]) -> None:
    places = machine()
    compile_program({}, places, [], KERNEL)
    assert places.cache is not None
    places.cache.chmod(0o777)
    compile_program({}, places, [], KERNEL)
    assert runs(places) == 2


def test_it_may_be_kept_behind_a_link(machine: Callable[..., Places], tmp_path: Path) -> None:
    """As /var/cache/otel-procmon is one for systemd's DynamicUser=."""
    places = machine()
    real = tmp_path / "var/cache/private/otel-procmon"
    real.mkdir(parents=True, mode=0o700)
    (tmp_path / "var/cache/otel-procmon").symlink_to(real)
    compile_program({}, places, [], KERNEL)
    compile_program({}, places, [], KERNEL)
    assert (runs(places), len(list(real.iterdir()))) == (1, 1)


@pytest.mark.parametrize(
    "damaged", [b"", b"{}", b"[]", b'{"programs": {}}', b"\xff", b'{"programs": {"on_exec": "A"}}']
)
def test_what_is_damaged_is_compiled_again(machine: Callable[..., Places], damaged: bytes) -> None:
    places = machine()
    programs = compile_program({}, places, [], KERNEL)
    assert places.cache is not None
    (kept,) = places.cache.iterdir()
    kept.write_bytes(damaged)
    assert compile_program({}, places, [], KERNEL) == programs
    assert runs(places) == 2


def test_installation_without_the_sources(
    machine: Callable[..., Places], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_procmon.source.bcc_program.resources.files", lambda _: tmp_path)
    with pytest.raises(SourceError, match=r"has no sources of it .*bpf/procmon\.bpf\.c is missing") as error:
        compile_program({}, machine(), [], KERNEL)
    assert str(error.value).endswith(".")


def test_nowhere_to_keep_it(machine: Callable[..., Places], tmp_path: Path) -> None:
    places = machine()
    write(tmp_path / "var/cache", "a file in its way")
    compile_program({}, places, [], KERNEL)
    compile_program({}, places, [], KERNEL)
    assert runs(places) == 2


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("echo 'main.c:3:1: error: no such field' >&2; echo Failed >&2; exit 1", "(no such field)"),
        ("echo Failed to compile >&2; exit 1", "(Failed to compile)"),
        ("exit 1", "(it said nothing)"),
        ("echo '{}'", "(it said nothing)"),
        ("kill -9 $$", "(it said nothing)"),
    ],
)
def test_what_does_not_compile(machine: Callable[..., Places], python: str, said: str) -> None:
    messages: list[str] = []
    with pytest.raises(SourceError, match=r"^BCC cannot compile the program for Linux 6\.1\.0-0-test \(") as error:
        compile_program({}, machine(python=python), messages, KERNEL)
    assert said in str(error.value)
    assert ("Failed" in " ".join(messages)) == ("Failed" in python), "doctor --verbose shows it"


def test_nothing_is_compiled_without_headers(machine: Callable[..., Places]) -> None:
    places = machine(headers=False)
    with pytest.raises(SourceError, match=r"^The program cannot be compiled: the headers of this kernel are not there"):
        compile_program({}, places, [], KERNEL)
    assert runs(places) == 0


# Sources


def test_all_sources_are_in_the_package() -> None:
    folder = resources.files("otel_procmon.source").joinpath("bpf")
    wanted = ["procmon.bpf.c"]
    for name in wanted:
        text = folder.joinpath(name).read_text(encoding="utf-8")
        wanted += [each for each in re.findall(r'#include "(.*)"', text) if each not in wanted]
    assert {"bcc.h", "bcc_programs.h", "procmon.h"} < set(wanted)


def test_sizes_are_those_of_the_sources() -> None:
    text = resources.files("otel_procmon.source").joinpath("bpf/procmon.h").read_text(encoding="utf-8")
    sizes = dict(re.findall(r"#define PROCMON_(\w+)_MAX \((\d+) \* 1024\)", text))
    assert (int(sizes["ARGS"]) * 1024, int(sizes["PATHS"]) * 1024) == (bcc._ARGS_BYTES, bcc._PATHS_BYTES)


# Instructions


def load(destination: int, source: int, low: int, high: int = 0) -> bytes:
    """``ld_imm64``."""
    return struct.pack("<BBhi", 0x18, source << 4 | destination, 0, low) + struct.pack("<BBhi", 0, 0, 0, high)


CALL = struct.pack("<BBhi", 0x85, 0, 0, 1)


def test_maps_and_values_are_put_in_their_places() -> None:
    code = load(1, 1, 1000) + CALL + load(2, 1, 2000) + load(3, 0, 1000) + CALL
    placed = bcc.place(code, {1000: 7}, {2000: 0x1_8000_0005})
    assert placed == load(1, 1, 7) + CALL + load(2, 0, -0x7FFF_FFFB, 1) + load(3, 0, 1000) + CALL


def test_a_number_that_looks_like_an_instruction() -> None:
    # The second half of a constant: its opcode is 0, whatever its value.
    code = load(1, 0, 5, 0x18) + load(1, 1, 1000)
    assert bcc.place(code, {1000: 7}, {}) == load(1, 0, 5, 0x18) + load(1, 1, 7)


def test_a_map_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="instruction 1 names 1001, which is neither"):
        bcc.place(CALL + load(1, 1, 1001), {1000: 7}, {2000: 1})


# This process, by /proc


@pytest.fixture
def initial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The namespaces that this runs in are taken for the first ones, as they are outside of containers."""
    inodes = {name: (PROC / "self/ns" / name).stat().st_ino for name in ("pid", "time")}
    monkeypatch.setattr(own_process, "_INITIAL_NAMESPACES", inodes)


def test_another_pid_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "_INITIAL_NAMESPACES", {"pid": 1})
    assert read_self(PROC) is None


def test_no_proc(tmp_path: Path) -> None:
    assert read_self(tmp_path) is None


@pytest.mark.usefixtures("initial")
def test_this_process_is_known_again() -> None:
    told = read_self(PROC)
    assert told is not None
    assert (told.pid, told.parent_pid, told.uid) == (os.getpid(), os.getppid(), os.getuid())
    start_ns = told.start_ticks * 1_000_000_000 // told.ticks_per_s + 1
    head = Head(
        *(4, 1, 0, start_ns, 0, 0, 0, 0, told.pid, told.parent_pid, 0, 0, told.uid, 0, 0, 0, 0, 0, 0, 0),
        told.comm.ljust(16, b"\0"),
    )
    assert told.is_of(head)
    # On 5.10 a longer name's end stands behind the NUL.
    assert told.is_of(head._replace(comm=(told.comm + b"\0x").ljust(16, b"\0")[:16]))
    assert not told.is_of(head._replace(pid=told.pid + 1))
    assert not told.is_of(head._replace(start_ns=start_ns + 1_000_000_000))
    assert not told.is_of(head._replace(comm=b"x".ljust(16, b"\0")))
    assert not told.is_of(head._replace(uid=told.uid + 1))


@pytest.mark.usefixtures("initial")
def test_a_name_of_any_bytes(tmp_path: Path) -> None:
    proc = tmp_path / "self"
    (proc / "ns").mkdir(parents=True)
    real = PROC / "self/ns"
    for name in ("pid", "time"):
        (proc / "ns" / name).symlink_to(real / name)
    (proc / "stat").write_bytes(b"42 (a) b (\xff)) S 7 " + b" ".join(str(n).encode() for n in range(5, 53)))
    told = read_self(tmp_path)
    assert told is not None
    assert (told.pid, told.comm, told.parent_pid, told.start_ticks) == (42, b"a) b (\xff)", 7, 22)
