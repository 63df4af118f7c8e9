"""Giving up rights. What changes a process for good is done in a forked child, which says what became of it.

Capabilities are really dropped where these tests run as root; where not, what needs root is left to the kernel tier.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_procmon import privileges
from otel_procmon.privileges import (
    CANDIDATES,
    CAPABILITIES,
    Identity,
    PrivilegeError,
    drop,
    find_user,
    give_spool,
    held,
    least,
    make_way,
    only,
    unreadable,
    with_group_of_socket,
)
from otel_procmon.source.command_lines import THREAD_NAME
from otel_procmon.source.own_process import host_pid

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = Identity("nobody", 65534, 65534, ())

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` gives, done in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = {"answer": work()}
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        told = json.loads(file.read())
    os.waitpid(pid, 0)
    assert "error" not in told, told["error"]
    return told["answer"]


def status() -> dict[str, str]:
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines}


def test_capabilities_are_the_kernels() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert sorted(CAPABILITIES.values()) == list(range(len(CAPABILITIES)))
    assert last <= max(CAPABILITIES.values()), "the kernel knows more"
    assert (CAPABILITIES["SYS_PTRACE"], CAPABILITIES["PERFMON"], CAPABILITIES["BPF"]) == (19, 38, 39)


def test_held_is_what_the_kernel_says() -> None:
    effective = int(status()["CapEff"], 16)
    assert held() == {name for name, number in CAPABILITIES.items() if effective >> number & 1}


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups"),
    [("0", 0, 0, None), ("root", 0, 0, None), ("root:7", 0, 7, ()), ("4000000:7", 4000000, 7, ()), ("0:0", 0, 0, ())],
)
def test_find_user(text: str, uid: int, gid: int, groups: tuple[int, ...] | None) -> None:
    found = find_user(text)
    assert (found.name, found.uid, found.gid) == (text, uid, gid)
    if groups is not None:
        assert found.groups == groups
    else:
        assert set(found.groups) == set(os.getgrouplist(pwd.getpwuid(0).pw_name, 0)) - {0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no user; write NAME"),
        (":adm", "':adm' is no user"),
        ("root:", "'root:' is no user"),
        ("no-such-user", "there is no user 'no-such-user' on this host; make one"),
        ("root:no-such-group", "there is no group 'no-such-group' on this host"),
        ("4000000", "user 4000000 is not in this host's list of users, so its group has to be given: UID:GID"),
        # -1 to the kernel, which would change nothing.
        ("4294967295:0", "there is no user '4294967295'"),
        ("-1", "there is no user '-1'"),
    ],
)
def test_no_user(text: str, message: str) -> None:
    with pytest.raises(PrivilegeError, match=message):
        find_user(text)


@pytest.fixture
def a_socket(tmp_path: Path) -> Path:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
    return path


@pytest.mark.parametrize(
    ("mode", "joins", "trouble"),
    [(0o660, True, False), (0o666, False, False), (0o600, False, True), (0o640, False, True)],
)
def test_the_group_of_a_socket(mode: int, joins: bool, trouble: bool, a_socket: Path) -> None:
    a_socket.chmod(mode)
    identity = Identity("other", 4000000, 4000000, (1,))
    found, sentence = with_group_of_socket(identity, a_socket)
    assert found == (identity._replace(groups=(1, a_socket.stat().st_gid)) if joins else identity)
    assert (sentence is not None) == trouble
    assert sentence is None or f"{a_socket} is not open to other nor to any group" in sentence


def test_a_socket_of_the_users_own_or_of_its_group(a_socket: Path) -> None:
    own = a_socket.stat()
    a_socket.chmod(0o660)
    for identity in (
        Identity("u", own.st_uid, 9, ()),
        Identity("u", 9, own.st_gid, ()),
        Identity("u", 9, 9, (own.st_gid,)),
    ):
        assert with_group_of_socket(identity, a_socket) == (identity, None)


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    found, sentence = with_group_of_socket(NOBODY, tmp_path / "none")
    assert found == NOBODY
    assert sentence is not None
    assert "cannot be looked at now (no such file or directory)" in sentence


def test_least_is_the_first_that_works() -> None:
    tried = []

    def works() -> bool:
        tried.append(held())
        return len(tried) == 2

    before = held()
    assert least(CANDIDATES, works) == CANDIDATES[1]
    assert [found <= candidate for found, candidate in zip(tried, CANDIDATES, strict=False)] == [True, True]
    assert held() == before
    assert least(CANDIDATES, lambda: False) == CANDIDATES[-1]


@needs_root
def test_only_is_for_a_while() -> None:
    before = held()
    with only({"SYS_PTRACE"}):
        assert held() == before & {"SYS_PTRACE"}
    assert held() == before


@needs_root
@pytest.mark.parametrize("keep", [frozenset(), frozenset({"SYS_PTRACE"})])
@pytest.mark.parametrize("identity", [None, NOBODY._replace(groups=(7,))])
def test_drop(keep: frozenset[str], identity: Identity | None) -> None:
    def work() -> Any:
        dropped = drop(identity, keep)
        return [dropped.uid, sorted(dropped.capabilities), sorted(dropped.missing), status(), os.umask(0)]

    uid, capabilities, missing, told, umask = in_child(work)
    wanted = sum(1 << CAPABILITIES[name] for name in keep)
    assert (uid, set(capabilities), missing) == (0 if identity is None else 65534, set(keep), [])
    assert {name: int(told[name], 16) for name in ("CapPrm", "CapEff")} == {"CapPrm": wanted, "CapEff": wanted}
    assert {int(told[name], 16) for name in ("CapInh", "CapBnd", "CapAmb")} == {0}
    assert told["Uid"] == " ".join([str(uid)] * 4)
    assert told["NoNewPrivs"] == "1"
    assert umask == 0o077
    if identity is not None:
        assert (told["Gid"], told["Groups"]) == ("65534 65534 65534 65534", "7")


@needs_root
def test_what_was_dropped_does_not_come_back() -> None:
    def work() -> Any:
        drop(NOBODY, ())
        attempts: tuple[Callable[[], None], ...] = (
            lambda: os.setuid(0),
            lambda: os.setgroups([0]),
            lambda: privileges._set(1, 1, 0),
        )
        for attempt in attempts:
            with pytest.raises(PermissionError):
                attempt()
        with pytest.raises(PrivilegeError, match="becoming root takes root, or the capabilities SETUID and SETGID"):
            drop(Identity("root", 0, 0, ()), ())
        return drop(NOBODY, {"SYS_ADMIN"}).missing == {"SYS_ADMIN"}

    assert in_child(work) is True


@needs_root
def test_threads_would_keep_their_rights() -> None:
    def work() -> Any:
        stop = threading.Event()
        threading.Thread(target=stop.wait, daemon=True).start()
        with pytest.raises(PrivilegeError, match="threads run already"):
            drop(None, ())
        return True

    assert in_child(work) is True


@needs_root
def test_a_thread_that_is_stuck_in_a_command_line() -> None:
    def work() -> Any:
        threading.Thread(target=threading.Event().wait, name=THREAD_NAME, daemon=True).start()
        with pytest.raises(PrivilegeError, match="1 processes hang so that their command lines cannot be read"):
            drop(NOBODY, ())
        return sorted(drop(None, ()).capabilities)

    assert in_child(work) == []


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "a" / "spool"
    make_way(path)
    return path


@needs_root
def test_a_spool_is_made_and_given(spool: Path) -> None:
    give_spool(spool, NOBODY)
    assert (spool.stat().st_uid, spool.stat().st_gid, stat.S_IMODE(spool.stat().st_mode)) == (65534, 65534, 0o700)
    assert stat.S_IMODE(spool.parent.stat().st_mode) == 0o755


@needs_root
def test_what_is_in_a_spool_is_given_but_not_what_it_leads_to(spool: Path, tmp_path: Path) -> None:
    spool.mkdir(mode=0o700)
    secret, ours, theirs = tmp_path / "secret", spool / "0000000000000001.logs.1", spool / "theirs"
    for path in (secret, ours, theirs):
        path.write_text("")
    os.chown(theirs, 4711, 4711)
    (spool / "link").symlink_to(secret)
    os.link(secret, spool / "hard")
    (spool / "directory").mkdir()
    give_spool(spool, NOBODY)
    assert [path.stat().st_uid for path in (spool, ours, theirs, secret, spool / "directory")] == [
        65534,
        65534,
        4711,
        0,
        0,
    ]


@needs_root
def test_a_spool_that_is_the_users_already_is_left_alone(spool: Path, tmp_path: Path) -> None:
    spool.mkdir(mode=0o700)
    file = spool / "0000000000000001.logs.1"
    file.write_text("")
    os.chown(spool, NOBODY.uid, NOBODY.gid)
    # As a container's root has it, which may not even look into the directory.
    with only({"CHOWN"}):
        give_spool(spool, NOBODY)
    assert file.stat().st_uid == 0


@needs_root
@pytest.mark.parametrize("prepare", [lambda path: os.chown(path, 4711, 0), lambda path: path.chmod(0o777)])
def test_a_spool_that_is_not_roots_alone_is_left_to_whoever_opens_it(
    prepare: Callable[[Path], None], spool: Path
) -> None:
    spool.mkdir(mode=0o700)
    prepare(spool)
    owner = spool.stat().st_uid
    give_spool(spool, NOBODY)
    assert spool.stat().st_uid == owner


@needs_root
def test_a_spool_that_cannot_be_given(spool: Path) -> None:
    spool.write_text("")
    with pytest.raises(PrivilegeError, match=r"the spool .*/spool cannot be given to nobody \(Not a directory\)"):
        give_spool(spool, NOBODY)


@needs_root
def test_unreadable(tmp_path: Path) -> None:
    secret, public = tmp_path / "secret", tmp_path / "public"
    for path in (secret, public):
        path.write_text("")
    os.chown(secret, 4711, 4711)
    secret.chmod(0o600)
    public.chmod(0o644)
    with only(()):
        assert unreadable([secret, public, tmp_path, tmp_path / "none", Path("\0")]) == [secret]
    with only({"DAC_READ_SEARCH"}):
        assert unreadable([secret]) == []


def test_host_pid(tmp_path: Path) -> None:
    """Of a pid namespace nobody knows what its processes are called outside."""
    assert host_pid(tmp_path) is None
    assert host_pid(tmp_path / "none") is None
    own = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC
    assert host_pid() == (os.getpid() if own else None)
