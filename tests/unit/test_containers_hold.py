"""What waits for its container's metadata: in order, not for ever, and never all of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.agent import Agent
from otel_procmon.containers.hold import PLACE, Hold
from otel_procmon.containers.metadata import Found
from otel_procmon.events import Container, Pod
from otel_procmon.filters import Filter
from otel_procmon.ledger import Ledger
from tests.unit.happenings import END, exited, image, started

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_procmon.lineage.image import Happening

HOLD_NS = 100
UID = "8d7f0b54-0c1e-4f0a-9a55-0d9d8b8f6f0a"
POD = Pod(namespace="default", name="xwing", uid=UID, labels={"class": "xwing"})
IDS = [digit * 64 for digit in "abcd"]


class Directory:
    """Stands in for the runtime and the API: knows what it was taught, and looks for nothing by itself."""

    def __init__(self) -> None:
        self.known: dict[str, Container] = {}
        self.pods: dict[str, Pod] = {}
        self.hopeless: set[str] = set()
        self.unfinished: set[str] = set()
        self.sought: list[str] = []
        self.at_settling: Callable[[], None] = lambda: None

    def learn(self, container_id: str, pod: Pod = POD) -> None:
        self.known[container_id] = Container(id=container_id, runtime="containerd", name="spaceship")
        self.pods[container_id] = pod

    def find(self, container_id: str | None, pod_uid: str | None) -> Found:
        key = container_id or pod_uid or ""
        pod = self.pods.get(key)
        return Found(self.known.get(key), pod, key in self.unfinished or (pod is None and key not in self.hopeless))

    def seek(self, container_id: str) -> None:
        self.sought.append(container_id)

    def settle(self, timeout_s: float) -> None:  # noqa: ARG002
        self.at_settling()


class Bench:
    """A hold with a clock that stands still unless told."""

    def __init__(self, max_held: int = 1000, hold_ns: int = HOLD_NS) -> None:
        self.now_ns = 5
        self.directory = Directory()
        self.ledger = Ledger()
        self.hold = Hold(self.directory, self.ledger, hold_ns=hold_ns, max_held=max_held, clock_ns=lambda: self.now_ns)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def happening(container_id: str | None = IDS[0], pod_uid: str | None = UID, **fields: Any) -> Happening:
    container = None if container_id is None else Container(id=container_id, runtime=fields.pop("runtime", None))
    return started(image(container_id=container_id, container=container, pod_uid=pod_uid, **fields))


def pods(happenings: Sequence[Happening]) -> list[str | None]:
    return [one.image.process.pod.name if one.image.process.pod else None for one in happenings]


def test_the_host_does_not_wait(bench: Bench) -> None:
    one = happening(None, None)
    process = one.image.process

    assert bench.hold.pass_on([one]) == [one]
    assert one.image.process is process
    assert bench.ledger.counts() == {}


def test_what_is_known_is_put_on_at_once(bench: Bench) -> None:
    bench.directory.learn(IDS[0])
    one = happening()

    assert bench.hold.pass_on([one]) == [one]
    process = one.image.process
    assert process.pod is POD
    assert process.container == bench.directory.known[IDS[0]]
    assert not process.metadata_incomplete

    # Nothing new is known at its end, so nothing is made anew.
    bench.hold.pass_on([exited(one.image)])
    assert one.image.process is process


def test_waits_in_order_and_leaves_with_what_came(bench: Bench) -> None:
    first, host, second, third = happening(), happening(None, None), happening(), happening()

    assert bench.hold.pass_on([first, host, second]) == [host]
    assert bench.directory.sought == IDS[:1]
    assert len(bench.hold) == 2
    bench.directory.learn(IDS[0])
    assert bench.hold.pass_on([third]) == [first, second, third]
    assert pods([first, second, third]) == ["xwing"] * 3
    assert len(bench.hold) == 0
    assert bench.ledger.counts() == {(PLACE, "noted: held"): 2}


def test_nothing_waits_for_ever(bench: Bench) -> None:
    first, second, third, fourth = (happening() for _ in range(4))

    assert bench.hold.pass_on([first]) == []
    bench.now_ns += HOLD_NS - 1
    assert bench.hold.pass_on([second]) == []
    bench.now_ns += 1
    assert bench.hold.pass_on([]) == [first, second]
    # It has waited once; nobody waits for the same thing again.
    assert bench.hold.pass_on([third]) == [third]
    assert all(one.image.process.metadata_incomplete for one in (first, second, third))
    assert third.image.process.container_id == IDS[0]
    assert bench.ledger.get(PLACE, "incomplete: nothing came in time") == 2

    # But what comes late is used.
    bench.directory.learn(IDS[0])
    assert bench.hold.pass_on([fourth]) == [fourth]
    assert pods([fourth]) == ["xwing"]
    assert not fourth.image.process.metadata_incomplete


def test_what_the_runtime_alone_knows_in_the_end_is_enough(bench: Bench) -> None:
    # Pods that the API never tells of: crictl's.
    bench.directory.learn(IDS[0])
    bench.directory.unfinished.add(IDS[0])
    one = happening()

    assert bench.hold.pass_on([one]) == []
    bench.now_ns += HOLD_NS
    assert bench.hold.pass_on([]) == [one]
    assert pods([one]) == ["xwing"]
    assert not one.image.process.metadata_incomplete
    assert bench.ledger.counts() == {(PLACE, "noted: held"): 1}


def test_children_of_a_marked_process_are_not_marked_for_good(bench: Bench) -> None:
    bench.directory.learn(IDS[0])
    # A fork copies what its parent's process was.
    one = happening(metadata_incomplete=True)

    bench.hold.pass_on([one])
    assert not one.image.process.metadata_incomplete


def test_containers_do_not_wait_for_each_other(bench: Bench) -> None:
    one, other = happening(IDS[0]), happening(IDS[1])
    bench.directory.learn(IDS[1])

    assert bench.hold.pass_on([one, other]) == [other]


def test_a_hold_of_nothing_holds_nothing() -> None:
    bench = Bench(hold_ns=0)
    one = happening()

    assert bench.hold.pass_on([one]) == [one]
    assert one.image.process.metadata_incomplete
    assert bench.directory.sought == IDS[:1]


@pytest.mark.parametrize("runtime", ["docker", "podman", "lxc", "systemd-nspawn"])
def test_nobody_is_asked_for_what_is_in_no_pod_by_its_runtime(bench: Bench, runtime: str) -> None:
    one = happening(IDS[0], None, runtime=runtime)

    assert bench.hold.pass_on([one]) == [one]
    assert bench.directory.sought == []
    assert not one.image.process.metadata_incomplete


def test_what_will_not_come_is_not_waited_for(bench: Bench) -> None:
    bench.directory.hopeless = {IDS[0], IDS[1]}
    in_no_pod, in_a_pod = happening(IDS[0], None), happening(IDS[1], UID)

    assert bench.hold.pass_on([in_no_pod, in_a_pod]) == [in_no_pod, in_a_pod]
    assert not in_no_pod.image.process.metadata_incomplete
    assert in_a_pod.image.process.metadata_incomplete


def test_what_is_in_a_pod_but_in_no_container_has_its_pod(bench: Bench) -> None:
    one = happening(None, UID)
    assert bench.hold.pass_on([one]) == []
    bench.directory.pods[UID] = POD
    assert bench.hold.pass_on([]) == [one]
    assert pods([one]) == ["xwing"]


def test_beyond_the_bound_the_longest_waiting_container_leaves() -> None:
    bench = Bench(max_held=3)
    old = [happening(IDS[0]) for _ in range(2)]
    new = [happening(IDS[1]) for _ in range(2)]

    assert bench.hold.pass_on([*old, *new]) == old
    assert len(bench.hold) == 2
    assert bench.ledger.get(PLACE, "incomplete: too many were held") == 2


def test_at_the_end_everything_leaves_after_a_last_look(bench: Bench) -> None:
    one, other = happening(IDS[0]), happening(IDS[1])
    bench.hold.pass_on([one, other])
    bench.directory.at_settling = lambda: bench.directory.learn(IDS[0])

    assert bench.hold.flush(1) == [one, other]
    assert pods([one, other]) == ["xwing", None]
    assert other.image.process.metadata_incomplete
    assert bench.ledger.get(PLACE, "incomplete: the agent ended") == 1
    assert bench.hold.flush(1) == []


def test_a_parent_of_which_nothing_was_told_has_its_container_too(bench: Bench) -> None:
    bench.directory.learn(IDS[0])
    fork = image(exec_id="Zm9yaw==", container_id=IDS[0], container=Container(id=IDS[0]), pod_uid=UID)
    elsewhere = image(exec_id="aG9zdA==")
    child, grandchild = happening(), happening()
    child.image.parent, grandchild.image.parent = elsewhere, fork

    bench.hold.pass_on([child, grandchild])
    assert fork.process.pod is POD
    assert elsewhere.process.pod is None


class Source:
    """Stands in for a pinned ring: gives what it is told to, and remembers up to where it may forget."""

    ids: Any = None

    def __init__(self, *steps: list[Happening] | Callable[[], list[Happening]]) -> None:
        self._steps = list(steps)
        self._read = 0
        self.released: list[int] = []

    def step(self) -> list[Happening] | None:
        if not self._steps:
            return None
        step = self._steps.pop(0)
        happenings = step() if callable(step) else step
        self._read += len(happenings)
        return happenings

    def mark(self) -> int:
        return self._read

    def release(self, mark: int) -> None:
        self.released.append(mark)

    def holds(self) -> bool:
        return True

    def stop(self) -> list[Happening]:
        return []

    def count(self) -> None: ...

    def close(self) -> None: ...


class Sink:
    """An output where everything is safe at once."""

    closed = False

    def __init__(self) -> None:
        self.got: list[Happening] = []

    def put(self, happenings: Sequence[Happening]) -> None:
        self.got += happenings

    def mark(self) -> object:
        return len(self.got)

    def is_safe(self, mark: object) -> bool:  # noqa: ARG002
        return True

    def close(self, timeout_s: float) -> None: ...


def test_a_pinned_ring_keeps_what_is_held(bench: Bench) -> None:
    held, host, host_2, last = happening(), happening(None, None), happening(None, None), happening(None, None)
    seen: list[list[int]] = []

    def learn() -> list[Happening]:
        seen.append(list(source.released))
        bench.directory.learn(IDS[0])
        return [last]

    source = Source([host], [held], [host_2], learn)
    sink = Sink()
    Agent(source, Filter.of(), [sink], bench.ledger, bench.hold).run()

    # What came after it is passed on, but not released before it.
    assert seen == [[1]]
    assert source.released == [1, 4]
    assert sink.got == [host, host_2, held, last]


def test_the_filter_sees_pods(bench: Bench) -> None:
    bench.directory.learn(IDS[0])
    bench.directory.learn(IDS[1], Pod(namespace="kube-system", name="proxy"))
    wanted, unwanted = happening(IDS[0]), happening(IDS[1])
    sink = Sink()

    Agent(Source([unwanted, wanted]), Filter.of(namespaces=["default"]), [sink], bench.ledger, bench.hold).run()
    assert sink.got == [wanted]


def test_what_is_held_at_the_end_is_told(bench: Bench) -> None:
    one = happening()
    sink = Sink()

    Agent(Source([one]), Filter.of(), [sink], bench.ledger, bench.hold).run()
    assert sink.got == [one]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("happen"), st.lists(st.sampled_from([None, *IDS]), max_size=5)),
        st.tuples(st.just("learn"), st.sampled_from(IDS)),
        st.tuples(st.just("despair"), st.sampled_from(IDS)),
        st.tuples(st.just("wait"), st.integers(1, 2 * HOLD_NS)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 8))
def test_nothing_is_lost_doubled_or_overtaken(steps: list[tuple[str, Any]], max_held: int) -> None:
    bench = Bench(max_held)
    hold = bench.hold
    taken: list[Happening] = []
    taken_at_ns: list[int] = []
    given_back: list[Happening] = []

    for what, value in steps:
        if what == "learn":
            bench.directory.learn(value)
        elif what == "despair":
            bench.directory.hopeless.add(value)
        elif what == "wait":
            bench.now_ns += value
        else:
            new = [happening(one, one and UID, pid=len(taken) + n + 1) for n, one in enumerate(value)]
            taken += new
            taken_at_ns += [bench.now_ns] * len(new)
            leaving = hold.pass_on(new)
            given_back += leaving
            # The host never waits.
            assert [one for one in new if one.image.process.container_id is None] == [
                one for one in leaving if one.image.process.container_id is None
            ]
            assert len(hold) == len(taken) - len(given_back) <= max_held
            back = {one.image.process.pid for one in given_back}
            assert all(
                one.image.process.pid in back or bench.now_ns - at_ns < HOLD_NS
                for one, at_ns in zip(taken, taken_at_ns, strict=True)
            )
            for mark in range(len(taken) + 1):
                if hold.has_left(mark):
                    assert all(one.image.process.pid in back for one in taken[:mark])
    given_back += hold.flush(0)

    assert hold.has_left(hold.mark())
    for container_id in [None, *IDS]:
        assert [one for one in given_back if one.image.process.container_id == container_id] == [
            one for one in taken if one.image.process.container_id == container_id
        ]
    assert bench.ledger.lost() == 0


def test_an_end_is_held_behind_its_beginning(bench: Bench) -> None:
    begin = happening()
    end = exited(begin.image)
    assert bench.hold.pass_on([begin, end]) == []
    assert end.observed_unix_ns == END
    bench.directory.learn(IDS[0])
    assert bench.hold.pass_on([]) == [begin, end]
