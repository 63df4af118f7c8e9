"""The events that every source is decoded to, and that every later stage reads.

Times are nanoseconds since the Unix epoch and their names end in ``_unix_ns``. Identity is the ``exec_id``
(`otel_procmon.lineage.ids`): the id of an *image*, one program that a process runs from fork or exec until the next
exec or the exit. ``None`` means that the source does not know; no value is ever invented.

``gc=False``: nothing here can be part of a cycle, and there are many, so the garbage collector need not look at them.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Container(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A container as the metadata source knows it."""

    id: str
    """Bare id, without the ``containerd://`` that Kubernetes puts before it."""
    runtime: str | None = None
    """What stood before ``://``, or what the cgroup path tells: containerd, docker, cri-o, …"""
    name: str | None = None
    image_id: str | None = None
    image_name: str | None = None
    image_repo_digests: tuple[str, ...] = ()
    """``name@sha256:…``, under which registries have the image."""
    restart_count: int | None = None
    """How often Kubernetes has started this container of the pod anew."""
    start_time: str | None = None
    """RFC 3339, as the source wrote it."""
    maybe_exec_probe: bool = False
    """Tetragon takes what runs for one of the container's exec probes."""


class Owner(msgspec.Struct, frozen=True, gc=False):
    """What a pod was made by, or what that was made by."""

    kind: str
    """As Kubernetes writes it: ReplicaSet, DaemonSet, Job, …"""
    name: str


class Pod(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A Kubernetes pod as the metadata source knows it."""

    namespace: str | None = None
    name: str | None = None
    uid: str | None = None
    ip: str | None = None
    start_time: str | None = None
    """When the node took it on, RFC 3339."""
    owners: tuple[Owner, ...] = ()
    """Controllers, the nearest first: a ReplicaSet, then its Deployment; a Job, then its CronJob."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    workload: str | None = None
    workload_kind: str | None = None
    exec_probes: dict[str, tuple[tuple[str, ...], ...]] = {}
    """Commands of the exec probes of each container, by its name."""


class Process(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What is known of one image, fixed from its first event on."""

    exec_id: str
    pid: int
    """The process's id (tgid) in the initial pid namespace."""
    binary: str
    """Path as passed to exec, made absolute with the cwd; the script for a script. ``""``: not known."""
    start_unix_ns: int
    """When the image began: its exec, or its fork where no exec followed."""
    creation_unix_ns: int | None = None
    """When the process was forked. Tetragon does not tell."""
    boot_start_ns: int | None = None
    """The kernel's ``start_boottime``: with the pid, the identity of the process. Tetragon does not tell."""
    flags: tuple[str, ...] = ()
    """Tetragon's words: execve, clone, rootcwd, procFS, nocwd, errorCWD, truncArgs, …"""
    argv: tuple[str, ...] | None = None
    """All arguments, the program's own name first. None where only `arguments` is known."""
    arguments: str | None = None
    """Tetragon's one string without the program's name; it cannot always be split again. None where `argv` is known."""
    args_count: int | None = None
    """How many arguments there were, argv[0] included, even if some were cut."""
    executable: str | None = None
    """What really runs, where `binary` does not tell: the path behind a file descriptor, a memfd."""
    executable_deleted: bool = False
    """No name in the file system leads to the executable any more."""
    name: str | None = None
    """The kernel's ``comm``, where no path is known: a kernel thread's, or of a process whose exec was not seen."""
    interpreter: str | None = None
    """The program that runs a script, as its first line names it."""
    cwd: str | None = None
    parent_pid: int | None = None
    vpid: int | None = None
    """The process's id in its own, innermost pid namespace."""
    session_id: int | None = None
    """Pid of the session's leader, in the initial pid namespace.

    0: the session that the kernel itself is in; init is too, and what it starts, until they call setsid(2)."""
    tty: bool | None = None
    """Whether the session has a controlling terminal."""
    uid: int | None = None
    """Real user id, in the initial user namespace; Tetragon's ``uid``."""
    gid: int | None = None
    euid: int | None = None
    egid: int | None = None
    auid: int | None = None
    """The audit (login) user id. None where it was never set (4294967295)."""
    cgroup: str | None = None
    """Path in the cgroup hierarchy, from its root."""
    cgroup_id: int | None = None
    container_id: str | None = None
    """Bare id; from the cgroup path, or as much of it as the source has."""
    container: Container | None = None
    pod: Pod | None = None
    pod_uid: str | None = None
    """From the cgroup path, where no metadata is known."""
    metadata_incomplete: bool = False
    """What is known of its container or pod did not come in time."""
    node: str | None = None
    """The Kubernetes node, or the host."""
    cluster_name: str | None = None
    """The Kubernetes cluster, where the event tells it (Tetragon)."""
    in_init_tree: bool | None = None
    """As Tetragon tells it; where the source does not, lineage finds it out (`Image.in_init_tree`)."""
    kernel_thread: bool = False
    truncated: tuple[str, ...] = ()
    """Names of the fields that were cut."""
    redacted: tuple[str, ...] = ()
    """Names of the rules that found secrets, which were replaced (`otel_procmon.redact`)."""


class Usage(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a process used in all its life, as ``getrusage`` and ``/proc/<pid>/io`` count it."""

    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    max_rss_bytes: int | None = None
    read_bytes: int | None = None
    """Through read(2) and its like; pipes and page cache included (``rchar``)."""
    written_bytes: int | None = None


class _Moment(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What an event tells of a process without describing its program: the kernel does so at forks and exits."""

    time_unix_ns: int
    exec_id: str
    pid: int
    node: str | None = None
    boot_start_ns: int | None = None
    creation_unix_ns: int | None = None
    vpid: int | None = None
    name: str | None = None
    """The kernel's ``comm``."""
    session_id: int | None = None
    """Like all that follows, as it was at this moment."""
    tty: bool | None = None
    uid: int | None = None
    gid: int | None = None
    euid: int | None = None
    egid: int | None = None
    auid: int | None = None


class Fork(_Moment, frozen=True, gc=False, kw_only=True):
    """A process (not a thread) was made. It runs its parent's program until it execs.

    Session, terminal and users are the child's, and so its parent's at that moment.
    """

    parent_exec_id: str
    """The image of the child's parent, at this moment."""
    parent_pid: int
    parent_is_kernel_thread: bool = False


class Exec(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A process began to run a program."""

    time_unix_ns: int
    observed_unix_ns: int
    process: Process
    parent_exec_id: str | None
    """As far as the event itself can tell; lineage knows better when it saw the fork."""
    previous_exec_id: str | None = None
    """The image that the same process ran before: a program, or what its fork left."""
    previous_is_fork: bool | None = None
    """Whether that one never exec'd. None: the source cannot tell."""
    parent: Process | None = None
    """The parent as the event describes it (Tetragon)."""
    raw: dict[str, Any] | None = None
    """The event as it was read (Tetragon), so that nothing unknown is lost on the way through."""


class Exit(_Moment, frozen=True, gc=False, kw_only=True):
    """The last thread of a process ended."""

    observed_unix_ns: int
    code: int | None
    """Exit status 0 to 255; None where a signal ended the process, or the source does not tell."""
    signal: str | None = None
    """SIGKILL, …; real-time signals are ``SIGRTMIN+n``."""
    core_dumped: bool | None = None
    oom_killed: bool | None = None
    usage: Usage | None = None
    parent_exec_id: str | None = None
    parent_pid: int | None = None
    process: Process | None = None
    """The process as the event describes it, all of it (Tetragon). The kernel does not."""
    parent: Process | None = None
    raw: dict[str, Any] | None = None
    cgroup_id: int | None = None
    forked_only: bool = False
    """It had not exec'd since its fork."""
    kernel_thread: bool = False
    executable_deleted: bool = False
    truncated: tuple[str, ...] = ()


class Discovered(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An image that was already running when it was first seen."""

    time_unix_ns: int
    observed_unix_ns: int
    process: Process
    parent_exec_id: str | None
    forked_only: bool = False
    """It has not exec'd since its fork."""


Event = Fork | Exec | Exit | Discovered
