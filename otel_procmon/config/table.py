"""The one table of options: how each is read, what it may be and what it is for.

The file's reader, ``docs/configuration.md`` and ``examples/otel-procmon.yaml`` are made from it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from otel_procmon.config.options import (
    Capture,
    Config,
    ContainerOptions,
    DeliveryOptions,
    FilterOptions,
    LineageOptions,
    PrivilegeOptions,
    RecordOptions,
    RedactionOptions,
    TraceOptions,
)
from otel_procmon.config.units import HOUR, KIB, MIB, MINUTE, MS, S
from otel_procmon.config.values import (
    CAPABILITY_NAMES,
    CONTAINER_IDS,
    DIRECTORY,
    FILE,
    FILE_OR_NONE,
    FRACTION,
    KEYS,
    NAMESPACES,
    NUMBERS,
    OUTPUTS,
    REGEXES,
    SELECTORS,
    SOCKET,
    SOURCE,
    SWITCH,
    TEXT,
    USER,
    Kind,
    duration,
    size,
    whole,
)


class Option(NamedTuple):
    """One option. Its default is the dataclass's."""

    section: str
    """The attribute of `Config` that holds it; ``""``: `Config` itself."""
    attribute: str
    kind: Kind
    brief: str

    @property
    def key(self) -> str:
        """Its name in the file: values bring their units along."""
        return re.sub("_(ns|bytes)$", "", self.attribute)

    @property
    def name(self) -> str:
        """As messages and pages name it: with its section."""
        return f"{self.section}.{self.key}" if self.section else self.key

    @property
    def place(self) -> str:
        """Where to write it."""
        return f"{self.key} under {self.section}" if self.section else self.key

    @property
    def default(self) -> str:
        """Its default, as it is written in the file."""
        config = Config()
        return self.kind.write(getattr(getattr(config, self.section) if self.section else config, self.attribute))


SECTIONS: Final = {
    "": (Config, ""),
    "filters": (
        FilterOptions,
        (
            "What is to leave this host. Within one option any value is enough; all options that are set must hold. "
            "Regular expressions are RE2's and need only match somewhere."
        ),
    ),
    "capture": (Capture, "How events are taken from the kernel (`source: auto`, `ebpf` or `bcc`)."),
    "trace": (TraceOptions, "Where a new trace begins, and when a program that goes on is announced."),
    "lineage": (LineageOptions, "How much of the past is remembered."),
    "containers": (
        ContainerOptions,
        (
            "Who is asked for containers and pods (where events are this host's), and how long what happens in them "
            "waits for the answer. Nothing else waits. Where there is neither a runtime's socket nor a way to the "
            "Kubernetes API, nobody is asked and nothing waits."
        ),
    ),
    "redaction": (
        RedactionOptions,
        (
            "What is taken out of command lines before anything leaves, or any filter sees it: see redaction.md for "
            "what is found by itself."
        ),
    ),
    "records": (RecordOptions, "What log records and spans say."),
    "delivery": (DeliveryOptions, "What cannot be sent at once (`otlp`) waits: in memory, then on disk."),
    "privileges": (
        PrivilegeOptions,
        (
            "What is left of the rights that the agent was started with, once the programs are loaded and the files "
            "open: no capability that is not needed any more. See privileges.md."
        ),
    ),
}

OPTIONS: Final = (
    Option(
        "",
        "source",
        SOURCE,
        "Where events come from: this host's kernel, by `ebpf` (needs BTF), by `bcc` (needs BCC and kernel headers: "
        "bcc.md), or by `auto`, whichever of them can work; `tetragon:PATH` or `tetragon:-` (Tetragon's JSON, from a "
        "file or standard input); `recording:PATH` (what `--record` wrote).",
    ),
    Option(
        "",
        "outputs",
        OUTPUTS,
        "Where they go: `otlp` (as the OTEL_ variables say), `otlp-json` (OTLP as JSON lines), `json` (as Tetragon "
        "writes it), `compact` (a line for people); the latter three to standard output, or to a file as in "
        "`compact:PATH`.",
    ),
    Option(
        "filters",
        "namespaces",
        NAMESPACES,
        "Kubernetes namespaces, whole names. `''` is what runs outside of pods.",
    ),
    Option("filters", "pods", REGEXES, "Names of pods."),
    Option("filters", "binaries", REGEXES, "Paths of what runs."),
    Option("filters", "pids", NUMBERS, "Process ids, in the initial pid namespace."),
    Option("filters", "uids", NUMBERS, "Effective user ids, in the initial user namespace."),
    Option("filters", "containers", REGEXES, "Names of containers, in a pod those in its specification."),
    Option("filters", "container_ids", CONTAINER_IDS, "Container ids, or their beginnings."),
    Option("filters", "labels", SELECTORS, "Labels of pods, as for `kubectl get pods --selector`."),
    Option(
        "filters",
        "file",
        FILE,
        "A file with Tetragon's allow and deny lists (`export-allowlist`, `export-denylist`).",
    ),
    Option(
        "capture",
        "poll_interval_ns",
        duration(MS, 10 * S),
        "How often the ring buffer is read. Events wait this long at most; reading seldom costs less.",
    ),
    Option(
        "capture",
        "ring_bytes",
        size(256 * KIB, 1024 * MIB, power_of_two=True),
        "The ring buffer between kernel and agent. What finds it full is lost, and counted. An exec takes a few "
        "hundred bytes and its arguments.",
    ),
    Option(
        "capture",
        "wake_fraction",
        FRACTION,
        "How full the ring buffer gets before it is read ahead of time.",
    ),
    Option(
        "capture",
        "arguments_max_bytes",
        size(32 * KIB, 64 * KIB),
        "How much is kept of a program's arguments. The rest is cut, and the record says so.",
    ),
    Option(
        "capture",
        "snapshot",
        SWITCH,
        "Whether processes that run already are read, and told of (`process.discovered`), when capturing begins.",
    ),
    Option(
        "trace",
        "service_age_ns",
        duration(0),
        "What a process without a terminal starts when it is older than this is an activity of its own: a new trace.",
    ),
    Option(
        "trace", "max_age_ns", duration(S), "A trace that is older than this takes no more spans: a new one begins."
    ),
    Option(
        "trace",
        "max_spans",
        whole(1, 1_000_000),
        "A trace that has this many spans takes no more. Backends cut or refuse long traces.",
    ),
    Option(
        "trace",
        "open_after_ns",
        duration(0),
        "A program that has run for this long when a record that leaves names it as parent first sends an opening "
        "span, so that backends can show the trace before it ends.",
    ),
    Option(
        "lineage",
        "max_images",
        whole(1024, 16_777_216),
        "How many running and lately ended programs are remembered.",
    ),
    Option(
        "lineage",
        "grace_ns",
        duration(0, HOUR),
        "How long a program is remembered after its end, for events that come late.",
    ),
    Option(
        "lineage",
        "sweep_interval_ns",
        duration(S, HOUR),
        "How often it is checked whether processes still live whose exit may have been lost.",
    ),
    Option(
        "containers",
        "ask_runtime",
        SWITCH,
        "Whether the container runtime is asked, over the Container Runtime Interface: containerd, CRI-O, cri-dockerd. "
        "It knows a container at once.",
    ),
    Option(
        "containers",
        "runtime_endpoint",
        SOCKET,
        "Its socket, such as `unix:///run/containerd/containerd.sock`. `null`: as `CONTAINER_RUNTIME_ENDPOINT` says, "
        "else in one of the usual places.",
    ),
    Option(
        "containers",
        "ask_kubernetes",
        SWITCH,
        "Whether the Kubernetes API is asked for the pods of this node. It knows a pod's owners.",
    ),
    Option(
        "containers",
        "kubeconfig",
        FILE_OR_NONE,
        "How to reach it. `null`: by the pod's service account, else as `KUBECONFIG` says, else, on a node, by "
        "`~/.kube/config`.",
    ),
    Option(
        "containers",
        "node_name",
        TEXT,
        "This node's name in the Kubernetes API. `null`: as `NODE_NAME` says, else the host's name.",
    ),
    Option(
        "containers",
        "hold_ns",
        duration(0, 10 * MINUTE),
        "How long what happens in a container waits until it is known what container it is. Then it leaves as it is, "
        "marked `procmon.metadata.incomplete`. `0ms`: nothing waits.",
    ),
    Option(
        "containers",
        "max_held",
        whole(1, 1_048_576),
        "How much may wait, of all containers together. Each takes about 3 KiB.",
    ),
    Option(
        "redaction",
        "enabled",
        SWITCH,
        "Whether secrets are replaced by `*****`. If not, all arguments leave as they are, and the agent warns.",
    ),
    Option(
        "redaction",
        "rules",
        REGEXES._replace(may_be=r"a list of regular expressions, such as ['--pin[= ](\d+)', 'corp-key-(\w+)']"),
        "More rules, beside those built in: RE2 expressions on the arguments as one text, whose groups are replaced.",
    ),
    Option(
        "redaction",
        "file",
        FILE_OR_NONE,
        "A file of Tetragon's redaction filters: JSON objects with `redact` and perhaps `binary_regex`.",
    ),
    Option(
        "records",
        "failed_exit_is_error",
        SWITCH,
        "Whether a code other than 0, or a signal, makes a span's status Error. `test` and `grep` fail all day.",
    ),
    Option(
        "records",
        "well_known_labels",
        SWITCH,
        "Whether a pod's `app.kubernetes.io/` labels count for `service.name`, `service.version` and the like.",
    ),
    Option(
        "records",
        "pod_labels",
        KEYS,
        "Which labels of a pod become `k8s.pod.label.<key>`. All, as in Tetragon: Kubernetes means them for selecting, "
        "so they are short and no secrets.",
    ),
    Option(
        "records",
        "pod_annotations",
        KEYS,
        "Which annotations of a pod become `k8s.pod.annotation.<key>`, and `pod_annotations` in Tetragon's JSON. They "
        "may be long and may hold secrets. (Those that begin with `resource.opentelemetry.io/` count in any case.)",
    ),
    Option(
        "records",
        "systemd_services",
        SWITCH,
        "Whether a process outside of containers has its systemd service as `service.name`: `nginx` for "
        "`nginx.service`, `postgresql` for `postgresql@15-main.service`.",
    ),
    Option("records", "cluster_name", TEXT, "`k8s.cluster.name`, and `cluster_name` in Tetragon's JSON."),
    Option("records", "cluster_uid", TEXT, "`k8s.cluster.uid`: by the conventions the uid of `kube-system`."),
    Option(
        "delivery",
        "queue_bytes",
        size(MIB, 1024 * MIB),
        "How much of each signal may wait in memory. A record takes about 1.3 KiB.",
    ),
    Option("delivery", "in_flight", whole(1, 64), "How many batches of each signal may be on their way at one time."),
    Option(
        "delivery",
        "spool_directory",
        DIRECTORY,
        "Holds what the receiver is not there for, or memory has no room for, until it can be sent, by this agent or "
        "the next one. Each agent needs its own. `null`: nothing waits on disk.",
    ),
    Option(
        "delivery",
        "spool_max_bytes",
        size(MIB, 1024 * 1024 * MIB),
        "How much of the disk it may take; beyond it the oldest goes first, and is counted. Files are compressed: a "
        "record of a full batch takes about 130 bytes, a batch 4 KiB at least. There are 262144 files at most.",
    ),
    Option(
        "privileges",
        "user",
        USER,
        "Whom to become, if the agent was started as root: the user's name, and perhaps a group, else the user's own. "
        "The spool is given to the user. `null`: the agent stays who it is.",
    ),
    Option(
        "privileges",
        "keep",
        CAPABILITY_NAMES,
        "Capabilities to keep that nothing seems to need. `SYS_PTRACE` reads paths and directories of processes that "
        "are found only later, after events were lost. `all`: nothing is given up.",
    ),
)
