"""Every attribute and event that otel-procmon writes: its name, type, meaning and where it appears.

The names of OpenTelemetry's semantic conventions 1.44 wherever one exists, ``procmon.*`` for what they lack. A test
holds the former against the conventions' own package. ``python -m otel_procmon.convert.attributes`` prints
``docs/attributes.md``.
"""

from __future__ import annotations

import sys
from typing import Final, Literal, NamedTuple

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions that the names below are taken from."""

Type = Literal["string", "string[]", "int", "double", "boolean"]
Place = Literal["span", "log", "resource"]
Origin = Literal["stable", "release candidate", "development", "procmon"]
"""Stability in semantic conventions 1.44, or ``procmon`` for our own names."""

EVERY: Final[tuple[Place, ...]] = ("span", "log")


class Attribute(NamedTuple):
    """One attribute, as ``docs/attributes.md`` shows it."""

    name: str
    """Ends in ``.<key>`` where it stands for many attributes."""
    type: Type
    places: tuple[Place, ...]
    origin: Origin
    when: str
    """When it is there: ``always``, or the condition."""
    brief: str


class Event(NamedTuple):
    """One kind of log record: its EventName."""

    name: str
    severity: str
    brief: str


ATTRIBUTES: Final[list[Attribute]] = []
"""All attributes, in the order of their definition below."""


def _attribute(attribute: Attribute) -> str:
    """Register an attribute, and give its name back for the constant."""
    ATTRIBUTES.append(attribute)
    return attribute.name


def _process(name: str, type_: Type, when: str, brief: str, places: tuple[Place, ...] = EVERY) -> str:
    return _attribute(Attribute(name, type_, places, "release candidate", when, brief))


def _procmon(name: str, type_: Type, when: str, brief: str, places: tuple[Place, ...] = EVERY) -> str:
    return _attribute(Attribute(name, type_, places, "procmon", when, brief))


def _resource(name: str, type_: Type, origin: Origin, when: str, brief: str) -> str:
    return _attribute(Attribute(name, type_, ("resource",), origin, when, brief))


# The process, on spans and log records; never in the Resource.

PROCESS_PID: Final = _process("process.pid", "int", "always", "Process id in the initial pid namespace.")
PROCESS_PARENT_PID: Final = _process("process.parent_pid", "int", "known", "The parent's process id.")
PROCESS_VPID: Final = _process("process.vpid", "int", "known", "Process id in the process's own pid namespace.")
PROCESS_SESSION_LEADER_PID: Final = _process(
    "process.session_leader.pid", "int", "known", "Process id of the session's leader."
)
PROCESS_EXECUTABLE_NAME: Final = _process(
    "process.executable.name",
    "string",
    "known",
    "Last component of the path of what runs; of a script, the script's. The span's name.",
)
PROCESS_EXECUTABLE_PATH: Final = _process(
    "process.executable.path",
    "string",
    "known",
    "Path of what runs: as passed to exec, made absolute, or where that does not tell (a file descriptor, a memfd) "
    "what the kernel calls it. Of a script, the script's.",
)
PROCESS_COMMAND: Final = _process("process.command", "string", "all arguments are known", "The zeroth argument.")
PROCESS_COMMAND_ARGS: Final = _process(
    "process.command_args", "string[]", "all arguments are known", "All arguments, the zeroth included."
)
PROCESS_COMMAND_LINE: Final = _process(
    "process.command_line",
    "string",
    "the source has the arguments as one string only (Tetragon)",
    "Program and arguments as Tetragon writes them. It cannot always be split again.",
)
PROCESS_ARGS_COUNT: Final = _process(
    "process.args_count", "int", "known", "How many arguments there were, the zeroth included, even if some were cut."
)
PROCESS_WORKING_DIRECTORY: Final = _process("process.working_directory", "string", "known", "Working directory.")
PROCESS_USER_ID: Final = _process(
    "process.user.id", "int", "known", "Effective user id, in the initial user namespace."
)
PROCESS_USER_NAME: Final = _process(
    "process.user.name",
    "string",
    "outside of containers, if the host's passwd file has it",
    "Name of the effective user.",
)
PROCESS_REAL_USER_ID: Final = _process(
    "process.real_user.id", "int", "known", "Real user id, in the initial user namespace."
)
PROCESS_INTERACTIVE: Final = _process(
    "process.interactive", "boolean", "known", "Whether the session has a controlling terminal."
)
PROCESS_CREATION_TIME: Final = _process(
    "process.creation.time", "string", "known", "When the process was forked, ISO 8601, UTC."
)
PROCESS_LINUX_CGROUP: Final = _process(
    "process.linux.cgroup", "string", "known", "Path in the cgroup hierarchy, from its root."
)
PROCESS_EXIT_CODE: Final = _process(
    "process.exit.code",
    "int",
    "the process exited by itself",
    "Exit status as `waitpid` reports it. Absent where a signal ended the process: there is no code then.",
)
PROCESS_EXIT_TIME: Final = _process(
    "process.exit.time", "string", "the exit was seen", "When the process ended, ISO 8601, UTC."
)
ERROR_TYPE: Final = _attribute(
    Attribute(
        "error.type",
        "string",
        EVERY,
        "stable",
        "the exit failed, unless failed exits are configured not to be errors",
        "The exit code if it is not 0, or the signal's name.",
    )
)

# What the conventions lack.

PROCMON_EXEC_ID: Final = _procmon(
    "procmon.exec_id",
    "string",
    "always",
    "Identity of the image (one program that a process runs, from fork or exec until the next exec or the exit).",
)
PROCMON_PARENT_EXEC_ID: Final = _procmon(
    "procmon.parent_exec_id", "string", "known", "Identity of the parent image, also across traces."
)
PROCMON_PARENT_EXECUTABLE_NAME: Final = _procmon(
    "procmon.parent.executable.name", "string", "known", "The parent's `process.executable.name`."
)
PROCMON_PARENT_EXECUTABLE_PATH: Final = _procmon(
    "procmon.parent.executable.path", "string", "known", "The parent's `process.executable.path`."
)
PROCMON_ANCESTORS: Final = _procmon(
    "procmon.ancestors",
    "string[]",
    "there are known ancestors",
    "Executable names of the ancestors, nearest first, at most 16, whatever trace they are in.",
)
PROCMON_SELF: Final = _procmon(
    "procmon.self",
    "boolean",
    "it is so",
    "This is the agent's own process, or one that it, or a descendant of it, has started.",
)
PROCMON_FLAGS: Final = _procmon(
    "procmon.flags",
    "string[]",
    "there are any",
    "How the image came to be and what could not be read, in Tetragon's words: execve, clone, rootcwd, procFS, …",
)
PROCMON_AUID: Final = _procmon("procmon.auid", "int", "it was ever set", "Audit (login) user id.")
PROCMON_INTERPRETER: Final = _procmon(
    "procmon.interpreter",
    "string",
    "the image is a script",
    "The program that runs the script, as its first line says.",
)
PROCMON_EXECUTABLE_DELETED: Final = _procmon(
    "procmon.executable.deleted",
    "boolean",
    "it is so",
    "No name in the file system leads to the executable any more (deleted, or a memfd).",
)
PROCMON_TRUNCATED: Final = _procmon(
    "procmon.truncated", "string[]", "something was cut", "Names of the fields that were cut."
)
PROCMON_REDACTED: Final = _procmon(
    "procmon.redacted",
    "string[]",
    "something was redacted",
    "Names of the rules by which secrets were found in the command line or in a path, and replaced by `*****`.",
)
PROCMON_METADATA_INCOMPLETE: Final = _procmon(
    "procmon.metadata.incomplete",
    "boolean",
    "it is so",
    "What is known of the container or the pod had not come by the time when the record had to leave.",
)
PROCMON_EXIT_SIGNAL: Final = _procmon(
    "procmon.exit.signal", "string", "a signal ended the process", "The signal's name: SIGKILL, SIGRTMIN+3, …"
)
PROCMON_EXIT_CORE_DUMPED: Final = _procmon(
    "procmon.exit.core_dumped", "boolean", "a signal ended the process", "Whether a core was dumped."
)
PROCMON_EXIT_OOM_KILLED: Final = _procmon(
    "procmon.exit.oom_killed", "boolean", "a signal ended the process", "Whether it was for lack of memory."
)
PROCMON_EXIT_REASON: Final = _procmon(
    "procmon.exit.reason",
    "string",
    "the image did not end by a seen exit",
    "`exec`: the process runs another program now (spans only). `lost`: it vanished unseen, and the end is when that "
    "was noticed.",
)
PROCMON_USAGE_CPU_USER: Final = _procmon(
    "procmon.usage.cpu_user", "double", "known, at the exit", "Seconds of CPU time in user mode, in the process's life."
)
PROCMON_USAGE_CPU_SYSTEM: Final = _procmon(
    "procmon.usage.cpu_system", "double", "known, at the exit", "Seconds of CPU time in the kernel, likewise."
)
PROCMON_USAGE_MAX_RSS: Final = _procmon(
    "procmon.usage.max_rss", "int", "known, at the exit", "Most resident memory that it had at once, in bytes."
)
PROCMON_USAGE_IO_READ: Final = _procmon(
    "procmon.usage.io_read",
    "int",
    "known, at the exit",
    "Bytes read through read(2) and its like, pipes included; as in `/proc/<pid>/io` with those of children that it "
    "waited for.",
)
PROCMON_USAGE_IO_WRITTEN: Final = _procmon(
    "procmon.usage.io_written", "int", "known, at the exit", "Bytes written through write(2) and its like, likewise."
)
PROCMON_SPAN: Final = _procmon(
    "procmon.span",
    "string",
    "the image needs two spans",
    "`open`: 1 µs long, sent early so that children have a parent to hang under. `life`: the whole life, under "
    "the former.",
    ("span",),
)
PROCMON_ENTRY_REASON: Final = _procmon(
    "procmon.entry.reason",
    "string",
    "the span is the root of its trace",
    "Why a trace begins here: unknown_parent, kernel_parent, init_parent, container, session, service, limit. The span "
    "has a link to its parent's span in the other trace.",
    ("span",),
)

# The Resource: what the process belongs to.

SERVICE_NAME: Final = _resource(
    "service.name",
    "string",
    "stable",
    "always",
    "In Kubernetes by the conventions' order (annotation, labels when asked, workload, pod, container); of a container "
    "without Kubernetes its name; on the host the systemd service without `.service` and without a template's "
    "instance; else OTEL_SERVICE_NAME, or `otel-procmon`.",
)
SERVICE_NAMESPACE: Final = _resource(
    "service.namespace", "string", "stable", "in a pod, or configured", "Annotation, or the pod's namespace."
)
SERVICE_INSTANCE_ID: Final = _resource(
    "service.instance.id",
    "string",
    "stable",
    "in a pod, or configured",
    "Annotation, or namespace, pod and container, joined by dots.",
)
SERVICE_VERSION: Final = _resource(
    "service.version",
    "string",
    "stable",
    "in a pod, or configured",
    "Annotation, label when asked, or the image's tag and digest.",
)
HOST_NAME: Final = _resource("host.name", "string", "development", "known", "The host's name, or the event's node.")
HOST_ID: Final = _resource(
    "host.id",
    "string",
    "development",
    "the host is known",
    "The machine id. Where there is none to be had (another node's events, no machine-id file) the host's name.",
)
HOST_ARCH: Final = _resource("host.arch", "string", "development", "events of this host", "CPU architecture.")
OS_TYPE: Final = _resource("os.type", "string", "development", "always", "`linux`.")
OS_NAME: Final = _resource("os.name", "string", "development", "events of this host", "The distribution's name.")
OS_VERSION: Final = _resource("os.version", "string", "development", "events of this host", "Its version.")
OS_DESCRIPTION: Final = _resource(
    "os.description", "string", "development", "events of this host", "Name and version, for people."
)
CONTAINER_ID: Final = _resource(
    "container.id", "string", "stable", "in a container", "Bare id, or as much of it as the source has."
)
CONTAINER_NAME: Final = _resource(
    "container.name", "string", "development", "in a container outside of Kubernetes", "The container's name."
)
CONTAINER_RUNTIME_NAME: Final = _resource(
    "container.runtime.name", "string", "development", "known", "containerd, docker, cri-o, …"
)
CONTAINER_IMAGE_NAME: Final = _resource(
    "container.image.name", "string", "stable", "known", "Name of the image, without tag and digest."
)
CONTAINER_IMAGE_TAGS: Final = _resource("container.image.tags", "string[]", "stable", "known", "The image's tag.")
CONTAINER_IMAGE_ID: Final = _resource(
    "container.image.id", "string", "development", "known", "The image's id, as the runtime gives it."
)
CONTAINER_IMAGE_REPO_DIGESTS: Final = _resource(
    "container.image.repo_digests", "string[]", "stable", "known", "Repository and digest."
)
K8S_CLUSTER_NAME: Final = _resource(
    "k8s.cluster.name",
    "string",
    "stable",
    "configured (`records.cluster_name`, OTEL_RESOURCE_ATTRIBUTES), or in the event (Tetragon)",
    "The cluster's name.",
)
K8S_CLUSTER_UID: Final = _resource(
    "k8s.cluster.uid",
    "string",
    "stable",
    "configured (`records.cluster_uid`, OTEL_RESOURCE_ATTRIBUTES)",
    "The cluster's uid: by the conventions that of its namespace `kube-system`.",
)
K8S_NAMESPACE_NAME: Final = _resource("k8s.namespace.name", "string", "stable", "in a pod", "The pod's namespace.")
K8S_POD_NAME: Final = _resource("k8s.pod.name", "string", "stable", "in a pod", "The pod's name.")
K8S_POD_UID: Final = _resource(
    "k8s.pod.uid", "string", "stable", "in a pod, known", "The pod's uid, if need be from the cgroup path."
)
K8S_POD_IP: Final = _resource(
    "k8s.pod.ip", "string", "stable", "in a pod, known", "The pod's first IP address; the node's with its network."
)
K8S_POD_START_TIME: Final = _resource(
    "k8s.pod.start_time", "string", "stable", "in a pod, known", "When the node took the pod on, ISO 8601."
)
K8S_POD_LABEL: Final = _resource(
    "k8s.pod.label.<key>",
    "string",
    "stable",
    "in a pod, if `records.pod_labels` selects it",
    "The pod's labels, empty ones included.",
)
K8S_POD_ANNOTATION: Final = _resource(
    "k8s.pod.annotation.<key>",
    "string",
    "stable",
    "in a pod, if `records.pod_annotations` selects it",
    "The pod's annotations, empty ones included.",
)
K8S_CONTAINER_NAME: Final = _resource(
    "k8s.container.name", "string", "stable", "in a pod", "The container's name in the pod's specification."
)
K8S_CONTAINER_RESTART_COUNT: Final = _resource(
    "k8s.container.restart_count",
    "int",
    "stable",
    "in a pod, known",
    "How often Kubernetes has restarted the container, up to this run of it.",
)
K8S_NODE_NAME: Final = _resource(
    "k8s.node.name",
    "string",
    "stable",
    "in a pod; where it is given (NODE_NAME, `containers.node_name`) everywhere on the host",
    "The node.",
)
K8S_DEPLOYMENT_NAME: Final = _resource(
    "k8s.deployment.name", "string", "stable", "the pod belongs to one", "The pod's Deployment."
)
K8S_REPLICASET_NAME: Final = _resource(
    "k8s.replicaset.name", "string", "stable", "the pod belongs to one", "The pod's ReplicaSet."
)
K8S_STATEFULSET_NAME: Final = _resource(
    "k8s.statefulset.name", "string", "stable", "the pod belongs to one", "The pod's StatefulSet."
)
K8S_DAEMONSET_NAME: Final = _resource(
    "k8s.daemonset.name", "string", "stable", "the pod belongs to one", "The pod's DaemonSet."
)
K8S_JOB_NAME: Final = _resource("k8s.job.name", "string", "stable", "the pod belongs to one", "The pod's Job.")
K8S_CRONJOB_NAME: Final = _resource(
    "k8s.cronjob.name", "string", "stable", "the pod belongs to one", "The pod's CronJob."
)
K8S_REPLICATIONCONTROLLER_NAME: Final = _resource(
    "k8s.replicationcontroller.name",
    "string",
    "development",
    "the pod belongs to one",
    "The pod's ReplicationController.",
)
PROCMON_SYSTEMD_UNIT: Final = _procmon(
    "procmon.systemd.unit",
    "string",
    "in a systemd service, outside of containers",
    "The service's whole name; of a user's service that of the user's manager (`user@1000.service`).",
    ("resource",),
)
PROCMON_SYSTEMD_USER_UNIT: Final = _procmon(
    "procmon.systemd.user_unit",
    "string",
    "in a user's systemd service",
    "The whole name of the user's own service, which gives `service.name`. Users choose these names.",
    ("resource",),
)

EVENT_EXEC: Final = "process.exec"
EVENT_EXIT: Final = "process.exit"
EVENT_DISCOVERED: Final = "process.discovered"

EVENTS: Final = (
    Event(EVENT_EXEC, "INFO", "A process began to run a program."),
    Event(EVENT_EXIT, "INFO; WARN for a failed exit", "A process ended, or was found to have vanished."),
    Event(EVENT_DISCOVERED, "INFO", "A process was already running when it was first seen."),
)


def document() -> str:
    """The text of ``docs/attributes.md``."""
    lines = [
        "<!-- Generated by `python -m otel_procmon.convert.attributes`. Do not edit. -->",
        "",
        "# Attributes and events",
        "",
        f"Names follow OpenTelemetry's semantic conventions (schema `{SCHEMA_URL}`) wherever they have one;",
        "`procmon.*` is ours. What is not known is absent: there are no empty strings and no invented values.",
        "",
        "## Events",
        "",
        "Log records carry these in their EventName field; the body is a line for people.",
        "",
        "| EventName | Severity | What happened |",
        "|---|---|---|",
        *(f"| `{event.name}` | {event.severity} | {event.brief} |" for event in EVENTS),
        "",
    ]
    for title, places in (
        ("On spans and log records", EVERY),
        ("On spans only", ("span",)),
        ("Resource", ("resource",)),
    ):
        lines += [f"## {title}", "", "| Attribute | Type | Stability | When | Meaning |", "|---|---|---|---|---|"]
        lines += [
            f"| `{a.name}` | {a.type} | {a.origin} | {a.when} | {a.brief} |" for a in ATTRIBUTES if a.places == places
        ]
        lines.append("")
    lines += [
        "The Resource also has what `OTEL_RESOURCE_ATTRIBUTES` says, and what a pod's `resource.opentelemetry.io/`",
        "annotations say, as far as it does not contradict where the process really runs.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(document())
