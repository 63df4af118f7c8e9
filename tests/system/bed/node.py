"""A real Kubernetes node: etcd, API server, controllers, scheduler, kubelet and containerd, in an enclosure.

Everything is where a node has it by default (`enclosure.PRIVATE`): the CRI socket at ``/run/containerd/containerd.sock``,
the kubelet in ``/var/lib/kubelet``, its cgroups below ``/kubepods`` (unless another kubelet has that). There is no kube-proxy and no DNS: the one Service
that anybody needs, the API server's, is a rule of iptables.

Authorization is Kubernetes' own (RBAC), with two static tokens: `ADMIN` may do everything, `NOBODY` nothing.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import yaml

from tests.system.bed import images
from tests.system.bed.enclosure import (
    BOUND_SECONDS,
    BedError,
    Daemon,
    Enclosure,
    cgroup_roots,
    enclosure,
    end_cgroups,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "node1"
ADDRESS = "10.99.0.1"
SERVICE_ADDRESS = "10.96.0.1"
ADMIN = "admintoken"
NOBODY = "nobodytoken"
_CGROUPS = "kubepods"

# Without CAP_SYS_RESOURCE nothing may lower an oom_score_adj, or raise a limit: containerd is told not to try.
_CONTAINERD = """\
version = 2
root = "{directory}/containerd"
state = "/run/containerd"
oom_score = 0
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""
_BRIDGE = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.98.0.0/22"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}
_KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": ADDRESS,
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "failSwapOn": False,
    "oomScoreAdj": 0,
    "healthzBindAddress": "127.0.0.1",
    "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi"},
    "imageGCHighThresholdPercent": 100,
    "nodeStatusUpdateFrequency": "2s",
    "staticPodPath": "/var/lib/kubelet/manifests",
    "maxPods": 250,
    # A hundred pods at once are a test of the agent, not of the kubelet's patience.
    "registryPullQPS": 0,
    "eventRecordQPS": 0,
    "kubeAPIQPS": 100,
    "kubeAPIBurst": 200,
}
_CONTROLLERS = "*,-nodeipam,-route,-cloud-node-lifecycle,-ttl,-attachdetach,-persistentvolume-binder"


class Node:
    """The running node."""

    def __init__(self, place: Enclosure, programs: Path, cgroup_root: str) -> None:
        self.place = place
        self._cgroup_root = cgroup_root
        self.admin_kubeconfig = self._kubeconfig("admin", ADMIN)
        self.nobody_kubeconfig = self._kubeconfig("nobody", NOBODY)
        directory = place.directory
        pki = directory / "pki"
        admin = str(self.admin_kubeconfig)
        self.etcd = self._daemon(
            "etcd",
            f"--data-dir={directory}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=error",
            # What is kept for this long only need not survive a power failure.
            "--unsafe-no-fsync",
        )
        self.containerd = self._daemon("containerd", f"--config={directory}/containerd.toml")
        self.api_server = self._daemon(
            str(programs / "kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={ADDRESS}",
            "--secure-port=6443",
            f"--tls-cert-file={pki}/api.crt",
            f"--tls-private-key-file={pki}/api.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--token-auth-file={pki}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/accounts.key",
            f"--service-account-signing-key-file={pki}/accounts.key",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
        )
        self.controllers = self._daemon(
            str(programs / "kube-controller-manager"),
            f"--kubeconfig={admin}",
            f"--service-account-private-key-file={pki}/accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--port=0",
            f"--controllers={_CONTROLLERS}",
            f"--cert-dir={directory}/controllers",
            "--kube-api-qps=200",
            "--kube-api-burst=300",
        )
        self.scheduler = self._daemon(
            str(programs / "kube-scheduler"),
            f"--kubeconfig={admin}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--port=0",
            f"--cert-dir={directory}/scheduler",
        )
        self.kubelet = self._daemon(
            str(programs / "kubelet"),
            f"--config={directory}/kubelet.yaml",
            f"--kubeconfig={admin}",
            "--container-runtime=remote",
            "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
        )
        self.kubectl_command = (*place.inside, str(programs / "kubectl"), f"--kubeconfig={admin}")
        """`kubectl`, as admin; the rest of its command line follows."""

    @property
    def cri_socket(self) -> Path:
        """The CRI socket, where this machine sees it."""
        return self.place.own("/run/containerd") / "containerd.sock"

    @property
    def static_pods(self) -> Path:
        """Manifests in this directory are pods of the kubelet's own."""
        return self.place.own("/var/lib/kubelet") / "manifests"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl. Returns what it says; BedError if it fails."""
        command = [*self.kubectl_command, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BedError(f"kubectl {' '.join(arguments)}: {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(each) for each in objects))

    def get(self, *arguments: str) -> Any:
        """What ``kubectl get … -o json`` gives."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def wait_for_phase(self, pod: str, phase: str = "Running", namespace: str = "default") -> dict[str, Any]:
        """Wait until the pod, which need not exist yet, is in `phase`. Returns the pod."""

        def reached() -> bool:
            found.clear()
            with suppress(BedError):
                found.update(self.get("pod", pod, "-n", namespace))
            return bool(found and found["status"].get("phase") == phase)

        found: dict[str, Any] = {}
        wait_until(reached, f"pod {namespace}/{pod} is {phase}")
        return found

    def import_image(self, archive: Path) -> None:
        """Give the kubelet an image. Raises BedError."""
        self.place.run("ctr", "-n", "k8s.io", "images", "import", str(archive))

    def tasks(self) -> list[str]:
        """Ids of the containers that run, sandboxes included."""
        return self.place.run("ctr", "--connect-timeout", "2s", "-n", "k8s.io", "tasks", "ls", "-q").split()

    def run_in_container(self, container_id: str, *command: str) -> str:
        """Run a command in a container by way of the runtime, as ``kubectl exec`` does in the end. Returns its output."""
        return self.place.run(
            *("ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", uuid.uuid4().hex, container_id), *command
        )

    def start_containerd(self) -> None:
        """Start it, again after ``containerd.stop()``, and wait until it answers."""
        self.containerd.start()
        self.containerd.wait_until(self._containerd_answers, "containerd answers")

    def _containerd_answers(self) -> bool:
        try:
            self.tasks()
        except BedError:
            return False
        return True

    def start_api_server(self) -> None:
        """Start it, again after ``api_server.stop()``, and wait until it is ready."""
        self.api_server.start()
        self.api_server.wait_until(self._api_is_ready, "the API server is ready")

    def _api_is_ready(self) -> bool:
        try:
            return self.kubectl("get", "--raw", "/readyz") == "ok"
        except BedError:
            return False

    def _node_is_ready(self) -> bool:
        try:
            conditions = self.get("node", NAME)["status"]["conditions"]
        except BedError:
            return False
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _daemon(self, program: str, *arguments: str) -> Daemon:
        name = program.rpartition("/")[2]
        return Daemon(name, [*self.place.inside, program, *arguments], self.place.directory / f"{name}.log")

    def _kubeconfig(self, user: str, token: str) -> Path:
        certificate = str(self.place.directory / "pki/ca.crt")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "bed", "cluster": {"server": f"https://{ADDRESS}:6443", "certificate-authority": certificate}}
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": user, "context": {"cluster": "bed", "user": user}}],
            "current-context": user,
        }
        path = self.place.directory / f"{user}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def start(self) -> None:
        """Start everything, and wait until pods can run."""
        directory = self.place.directory
        _certificates(directory / "pki")
        (directory / "containerd.toml").write_text(_CONTAINERD.format(directory=directory))
        (directory / "kubelet.yaml").write_text(yaml.safe_dump({**_KUBELET, "cgroupRoot": self._cgroup_root}))
        (self.place.own("/etc/cni/net.d") / "10-pods.conflist").write_text(json.dumps(_BRIDGE))
        self.static_pods.mkdir()
        self._network()
        self.etcd.start()
        self.start_containerd()
        self._images(directory / "images")
        self.start_api_server()
        self.controllers.start()
        self.scheduler.start()
        self.kubelet.start()
        self.kubelet.wait_until(self._node_is_ready, "the node is ready")
        wait_until(
            lambda: any(each["metadata"]["name"] == "default" for each in self.get("serviceaccounts")["items"]),
            "pods have a service account",
        )

    def stop(self) -> None:
        """Stop everything, pods first, as long as somebody is there who can."""
        for manifest in self.static_pods.glob("*"):
            manifest.unlink()
        try:
            self.kubectl("delete", "daemonsets,deployments,jobs,cronjobs,statefulsets", "--all", "--all-namespaces")
            self.kubectl("delete", "pods", "--all", "--all-namespaces", "--grace-period=0", "--force", "--wait=false")
            wait_until(lambda: not self.tasks(), "no container runs any more", 60)
        except BedError as error:
            # What is left is ended with the cgroups and the namespaces.
            print(f"the node's pods could not be ended in order: {error}")
        for daemon in (self.kubelet, self.scheduler, self.controllers, self.api_server, self.etcd, self.containerd):
            daemon.stop()

    def _network(self) -> None:
        run = self.place.run
        # The kubelet wants a default route, though there is nothing behind it.
        run("ip", "link", "add", "node0", "type", "bridge")
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", "node0")
        run("ip", "link", "set", "node0", "up")
        run("ip", "route", "add", "default", "dev", "node0")
        for chain in ("OUTPUT", "PREROUTING"):
            matched = ("-d", SERVICE_ADDRESS, "-p", "tcp", "--dport", "443")
            run("iptables", "-t", "nat", "-A", chain, *matched, "-j", "DNAT", "--to", f"{ADDRESS}:6443")

    def _images(self, directory: Path) -> None:
        directory.mkdir()
        for name, tree, command in (
            (images.PAUSE, images.pause_tree(directory / "pause"), ["/pause"]),
            (images.BUSYBOX, images.busybox_tree(directory / "busybox"), ["/bin/sleep", "3600"]),
            (images.BASH, images.bash_tree(directory / "bash"), ["/bin/sleep", "3600"]),
        ):
            archive = tree.with_suffix(".tar")
            images.write_archive(name, tree, command, archive)
            self.import_image(archive)


@contextmanager
def running_node(directory: Path, programs: Path) -> Iterator[Node]:
    """A node in `directory`, which must be on a file system that overlays work on, with Kubernetes' `programs`.

    After the block it is stopped, and this machine is as before. BedError if it does not start.
    """
    # Another kubelet's pods would be ended by this one, which takes everything in there for its own: next to one, the
    # whole tree is a level deeper.
    taken = any((root / _CGROUPS).exists() for root in cgroup_roots())
    cgroup = directory.name if taken else ""
    with ExitStack() as undo:
        # Last of all, when nothing is there any more that would make them again.
        undo.callback(end_cgroups, cgroup or _CGROUPS)
        for root in cgroup_roots():
            (root / cgroup).mkdir(exist_ok=True)
        node = Node(undo.enter_context(enclosure(directory)), programs, f"/{cgroup}")
        undo.callback(node.stop)
        node.start()
        yield node


def _certificates(pki: Path) -> None:
    """A certificate authority, the API server's certificate, the key of service accounts, and the static tokens."""
    pki.mkdir()

    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=pki, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BedError(f"openssl {' '.join(arguments)}: {done.stderr}")

    new_key = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new_key, "-x509", "-days", "30", "-subj", "/CN=bed", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(*new_key, "-subj", "/CN=kube-apiserver", "-keyout", "api.key", "-out", "api.csr")
    (pki / "names").write_text(
        f"subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:{ADDRESS},IP:{SERVICE_ADDRESS}\n"
    )
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "names")
    openssl("x509", "-req", "-in", "api.csr", *signed, "-out", "api.crt")
    openssl("genrsa", "-out", "accounts.key", "2048")
    (pki / "tokens.csv").write_text(f'{ADMIN},admin,admin,"system:masters"\n{NOBODY},nobody,nobody,\n')


__all__ = ["ADDRESS", "BOUND_SECONDS", "NAME", "BedError", "Node", "running_node"]
