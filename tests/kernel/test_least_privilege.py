"""What the agent may do once it captures: as another user, without capabilities, with no socket that listens."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_procmon.privileges import CAPABILITIES
from tests.kernel.test_delivery import environment, spooled, unread
from tests.kernel.test_gaps import configuration, fill_ring, living
from tests.kernel.truth.everything import Everything, everything, for_any_user, place_for_pins
from tests.kernel.truth.family import with_word
from tests.kernel.truth.otlp import Records
from tests.kernel.truth.receiver import receiver, refusing_port
from tests.kernel.truth.running import Agent, AgentError, pins, run_command
from tests.kernel.truth.shell import marker, shell
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from tests.kernel.truth.receiver import Protocol
    from tests.kernel.truth.running import RunningAgent

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("require_kernel")]

UNIT = Path(__file__).parents[2] / "examples/systemd/otel-procmon.service"
USER = "65534:65534"
UID = 65534
NO_ONE = f"{UID} {UID} {UID} {UID}"
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
LISTENS = "0A"
"""``/proc/net/tcp``'s word for it: TCP_LISTEN of include/net/tcp_states.h."""
UNCONNECTED = "07"
ACCEPTS = 0x10000
"""__SO_ACCEPTCON of include/linux/net.h."""


def statuses(agent: Agent) -> dict[str, dict[str, str]]:
    """What the kernel says of each of the agent's threads, by their names and ids."""
    found = {}
    for task in Path(f"/proc/{agent.process.pid}/task").iterdir():
        try:
            text = (task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            # gRPC's come and go.
            continue
        lines = (line.partition(":") for line in text.splitlines())
        told = {name: " ".join(value.split()) for name, _, value in lines}
        found[f"{told['Name']} {task.name}"] = told
    return found


def for_bpf(agent: Agent) -> int:
    """What this kernel needs for reading what is loaded: nothing from Linux 5.19 on, before that what the agent found."""
    version = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if version >= (5, 19):
        return 0
    (held,) = {int(told["CapEff"], 16) for told in statuses(agent).values()}
    return held & (1 << CAPABILITIES["BPF"] | 1 << CAPABILITIES["PERFMON"])


def assert_without_rights(
    agent: Agent, *, uids: str = NO_ONE, groups: str = "", kept: int = 0, bounding: int = 0
) -> None:
    """Of every thread of the agent."""
    found = statuses(agent)
    kept |= for_bpf(agent)
    for name, told in found.items():
        assert (told["Uid"], told["Gid"], told["Groups"]) == (uids, uids, groups), name
        wanted = dict.fromkeys(SETS, 0) | dict.fromkeys(("CapPrm", "CapEff"), kept) | {"CapBnd": bounding}
        assert {each: int(told[each], 16) for each in SETS} == wanted, name
        assert told["NoNewPrivs"] == "1", name
    # Not dumpable, so that these are root's, and no process of the same user may look.
    assert Path(f"/proc/{agent.process.pid}/environ").stat().st_uid == 0


def existing(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """What the kernel says of these files, but for those that were removed meanwhile: a spool's are, once they were sent."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


def listening(agent: Agent) -> list[str]:
    """The agent's sockets that take what others send on their own account."""
    proc = Path(f"/proc/{agent.process.pid}")
    inodes = set()
    for descriptor in (proc / "fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    assert inodes, "it has no sockets at all"

    def table(name: str) -> list[list[str]]:
        return [line.split() for line in (proc / "net" / name).read_text().splitlines()[1:]]

    states = {"tcp": LISTENS, "tcp6": LISTENS, "udp": UNCONNECTED, "udp6": UNCONNECTED}
    addresses = [
        f"{name} {fields[1]}"
        for name, state in states.items()
        for fields in table(name)
        if fields[9] in inodes and fields[3] == state
    ]
    return addresses + [
        f"unix {fields[7:]}" for fields in table("unix") if fields[6] in inodes and int(fields[3], 16) & ACCEPTS
    ]


@pytest.fixture(params=["grpc", "http/protobuf"])
def parties(request: pytest.FixtureRequest) -> Iterator[Everything]:
    with everything(request.param) as found:
        yield found


def run_as_user(parties: Everything, through: tuple[str, ...], *more: str) -> AbstractContextManager[Agent]:
    return run_command(
        parties.directory,
        *("run", *parties.arguments, "--user", USER, "-v", *more),
        env=parties.env,
        through=through,
    )


def test_all_features_as_a_user_without_capabilities(parties: Everything) -> None:
    before, inside, outside = marker(), marker(), marker()
    received, runtime = parties.received, parties.runtime
    with ExitStack() as stack:
        running = stack.enter_context(shell("sh", "-c", 'exec "$@"', before))
        through = for_any_user(parties.directory, stack.enter_context(place_for_pins(parties.directory)))
        agent = stack.enter_context(run_as_user(parties, through))

        def arrived(word: str, count: int) -> bool:
            return len(with_word(received.logs, word)) >= count and len(with_word(received.spans, word)) >= count // 2

        # What it asks and reads from now on it does without rights.
        agent.wait_until(lambda: bool(runtime.calls and parties.api.queries), "the runtime and the API were asked")
        calls = len(runtime.calls)
        parties.run_in_container(inside)
        subprocess.run(["/bin/sh", "-c", "exit 7", outside], env=ENVIRONMENT, check=False)
        agent.wait_until(lambda: arrived(inside, 2) and arrived(outside, 2), "it delivered")
        metrics = received.metrics
        agent.wait_until(lambda: received.metrics > metrics, "metrics arrived")
        agent.wait_until(lambda: len(runtime.calls) > calls, "the runtime was asked")
        # The kernel gives what it had of the one that was there before; /proc is where its path came from.
        (found,) = [log for log in with_word(received.logs, running.marker) if log.event_name == "process.discovered"]
        assert found.attributes["process.executable.path"].startswith("/")
        assert found.attributes["process.working_directory"].startswith("/")
        assert found.attributes["process.user.id"] == 0

        assert len(statuses(agent)) > 5, "threads of its own, gRPC's and the SDK's"
        # The group of the runtime's socket.
        assert_without_rights(agent, groups="0")
        assert listening(agent) == []
        for path, status in existing([*parties.written, *parties.spool.iterdir()]).items():
            assert stat.S_IMODE(status.st_mode) == 0o600, path
        assert (parties.spool.stat().st_uid, stat.S_IMODE(parties.spool.stat().st_mode)) == (UID, 0o700)

        # A sweep takes place every second.
        looked = time.monotonic()
        agent.wait_until(lambda: time.monotonic() - looked > 2.5, "sweeps took place")
        running.end()
        agent.wait_until(lambda: len(with_word(received.logs, running.marker)) >= 2, "its end was told")
        agent.stop()
        assert "Traceback" not in agent.stderr
        told = with_word(received.logs, inside)
        assert {log.resource.get("k8s.pod.name") for log in told if "container.id" in log.resource} == {"xwing"}
        # Counters of the kernel are read without rights, too; pinned programs go on while the last line is written.
        assert unread(agent) >= 0
        assert agent.ledger()["kernel"]["made: exec"] > 0

        # Programs and ring are root's pins: the next agent takes them over, as root, and gives its rights up again.
        if pins():
            meanwhile = marker()
            subprocess.run(["/bin/sh", "-c", "exit 8", meanwhile], env=ENVIRONMENT, check=False)
            again = stack.enter_context(run_as_user(parties, through))
            assert "going on where the last agent stopped" in again.stderr
            again.wait_until(lambda: arrived(meanwhile, 2), "what happened in between was told")
            assert_without_rights(again, groups="0")
            again.stop()
    assert received.problems == []


@pytest.mark.every_kernel
def test_root_keeps_its_name_and_nothing_else(running_agent: RunningAgent, tmp_path: Path) -> None:
    with running_agent(tmp_path) as agent:
        (kept,) = {int(each["CapEff"], 16) & ~for_bpf(agent) for each in statuses(agent).values()}
        # Where this test's Python is in somebody's home.
        assert kept in {0, 1 << CAPABILITIES["DAC_READ_SEARCH"]}
        assert_without_rights(agent, uids="0 0 0 0", groups=own_groups(), kept=kept)


def test_as_the_systemd_unit_starts_it() -> None:
    """A user with ambient capabilities, and none of those by which others are given away."""
    before, after = marker(), marker()
    names = (
        re.findall(r"^AmbientCapabilities=(.*)$", UNIT.read_text(), re.MULTILINE)[0].replace("CAP_", "").lower().split()
    )
    sets = ",".join(["-all", *(f"+{name}" for name in names)])
    with (
        tempfile.TemporaryDirectory(prefix="procmon-", dir="/var/tmp") as place,
        shell("sh", "-c", 'exec "$@"', before) as old,
    ):
        directory = Path(place)
        os.chown(directory, UID, UID)
        directory.chmod(0o755)
        through = (
            *for_any_user(directory),
            *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
            *(f"--inh-caps={sets}", f"--ambient-caps={sets}", f"--bounding-set={sets}"),
        )
        records = directory / "records"
        options = ("run", "-o", f"otlp-json:{records}")
        with run_command(directory, *options, through=through) as agent:
            subprocess.run(["/bin/true", after], env=ENVIRONMENT, check=True)
            written = Records(records)
            agent.wait_until(lambda: len(with_word(written.logs(), after)) == 2, "it told of a program")
            agent.wait_until(lambda: bool(with_word(written.logs(), old.marker)), "and of what ran before")
            assert_without_rights(agent, bounding=sum(1 << CAPABILITIES[name.upper()] for name in names))
        (found,) = [log for log in with_word(written.logs(), old.marker) if log.event_name == "process.discovered"]
        assert found.attributes["process.executable.path"].startswith("/")
        assert stat.S_IMODE(records.stat().st_mode) == 0o600


def own_groups() -> str:
    return " ".join(map(str, sorted(os.getgroups())))


def test_nothing_is_dropped_where_all_is_to_be_kept(running_agent: RunningAgent, tmp_path: Path) -> None:
    own = statuses_of_this_process()
    with running_agent(tmp_path, "--config", configuration(tmp_path, "privileges: {keep: [all]}\n")) as agent:
        for told in statuses(agent).values():
            assert told["CapEff"] == own["CapEff"]
            assert told["NoNewPrivs"] == own["NoNewPrivs"]


def statuses_of_this_process() -> dict[str, str]:
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines}


@pytest.mark.every_kernel
@pytest.mark.parametrize("keep", [(), ("SYS_PTRACE",)])
def test_what_is_found_after_losses(keep: tuple[str, ...], tmp_path: Path) -> None:
    """Its identity is the kernel's to tell; its path and directory take SYS_PTRACE, which can be kept."""
    text = f"capture: {{ring: 256KiB}}\nlineage: {{sweep_interval: 1s}}\nprivileges: {{keep: [{', '.join(keep)}]}}\n"
    unknown, burst = marker(), marker()
    options = ("--config", configuration(tmp_path, text), "--spool", "none", "-o", f"otlp-json:{tmp_path / 'records'}")
    command = run_command(
        tmp_path, "run", *options, "--user", USER, records=tmp_path / "records", through=for_any_user(tmp_path)
    )
    with command as agent, ExitStack() as stack:
        assert_without_rights(agent, kept=sum(1 << CAPABILITIES[name] for name in keep))
        agent.process.send_signal(signal.SIGSTOP)
        os.waitpid(agent.process.pid, os.WUNTRACED)
        fill_ring(burst)
        survivor = living(unknown, stack)
        agent.process.send_signal(signal.SIGCONT)
        agent.wait_until(lambda: bool(with_word(agent.logs(), unknown)), "a sweep found it")
        (found,) = with_word(agent.logs(), unknown)
        assert found.event_name == "process.discovered"
        assert found.attributes["process.pid"] == survivor.pid
        has = {"process.executable.path", "process.working_directory"} & found.attributes.keys()
        assert has == ({"process.executable.path", "process.working_directory"} if keep else set())
    noted = agent.ledger().get("sweep", {}).get("noted: found without path", 0)
    if keep:
        assert noted == 0
    else:
        assert noted >= 1
        assert "privileges.keep: [SYS_PTRACE]" in agent.stderr


def test_a_spool_of_root_is_given_to_the_user(tmp_path: Path) -> None:
    protocol: Protocol = "http/protobuf"
    word = marker()
    with everything(protocol) as parties, refusing_port() as port:
        spool = parties.directory / "spool"
        options = ("run", "--spool", str(spool))
        with run_command(tmp_path, *options, env=environment(port, protocol)) as first:
            subprocess.run(["/bin/true", word], env=ENVIRONMENT, check=True)
            first.wait_until(lambda: min(spooled(spool).values()) > 0, "something waits on disk")
        waiting = spooled(spool)
        assert {path.stat().st_uid for path in spool.iterdir()} == {0}
        # A link to what is not the spool's is not followed.
        secret = tmp_path / "secret"
        secret.write_text("")
        (spool / "0000000000000001.logs.1").symlink_to(secret)
        os.link(secret, spool / "0000000000000002.logs.1")
        through = for_any_user(parties.directory)
        with receiver(protocol) as received:
            as_user = (*options, "--user", USER)
            with run_command(tmp_path, *as_user, env=environment(received.port, protocol), through=through) as second:
                batches = existing(path for path in spool.glob("*.*.*[0-9]") if not path.is_symlink())
                assert {status.st_uid for status in batches.values()} <= {UID, 0}
                second.wait_until(lambda: len(with_word(received.logs, word)) == 2, "what waited was delivered")
                second.wait_until(lambda: bool(with_word(received.spans, word)), "what waited was delivered")
                assert_without_rights(second)
        for place, records in waiting.items():
            assert second.ledger()[place]["found: in the spool"] >= records
        assert secret.stat().st_uid == 0
        with (
            pytest.raises(AgentError, match="belongs to user 65534"),
            run_command(tmp_path, *options, env=environment(port, protocol)),
        ):
            pass


def test_a_user_who_cannot_read_the_modules(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    script = f'cp -rL "{Path(__file__).parents[2] / "otel_procmon"}" {hidden} && cd {hidden} && exec env -u PYTHONSAFEPATH "$@"'
    through = (*for_any_user(tmp_path), "sh", "-c", script, "hidden")
    options = ("run", "--spool", "none", "-o", "compact", "--user", USER)
    with (
        pytest.raises(AgentError, match=f"may not read {hidden}/otel_procmon/rights.py, from where"),
        run_command(tmp_path, *options, through=through),
    ):
        pass
