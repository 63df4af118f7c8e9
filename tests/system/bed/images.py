"""Container images without a registry: OCI archives made from a directory, or from this machine's own programs.

The layout is that of the OCI image specification 1.0 (``oci-layout``, ``index.json``, ``blobs/sha256``), as
``ctr images import`` reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAUSE = "localhost/pause:1"
BUSYBOX = "localhost/busybox:1"
BASH = "localhost/bash:1"
PATH_VARIABLE = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUSYBOX_APPLETS = ("sh", "cat", "echo", "false", "id", "ls", "sleep", "tail", "true", "usleep", "wget")
BASH_PROGRAMS = ("bash", "cat", "env", "false", "ls", "sleep", "true", "whoami")
_MEDIA = "application/vnd.oci.image"


def pause_tree(into: Path) -> Path:
    """What holds a pod's namespaces, compiled from ``pause.c``."""
    into.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("pause.c")
    subprocess.run(["gcc", "-Os", "-static", "-s", "-o", into / "pause", source], check=True)
    return into


def busybox_tree(into: Path) -> Path:
    """Busybox alone: the smallest thing in which a shell runs."""
    directories(into)
    program = shutil.which("busybox")
    assert program is not None, "busybox-static is not installed"
    shutil.copy2(program, into / "bin/busybox")
    for applet in BUSYBOX_APPLETS:
        (into / "bin" / applet).unlink(missing_ok=True)
        (into / "bin" / applet).symlink_to("busybox")
    return into


def bash_tree(into: Path) -> Path:
    """This machine's bash and a few programs, with the libraries that they load, where Debian has them (``/usr/bin``)."""
    for directory in ("usr/bin", "usr/lib", "usr/lib64"):
        (into / directory).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "lib", "lib64"):
        (into / link).unlink(missing_ok=True)
        (into / link).symlink_to(f"usr/{link}")
    directories(into, but=("bin",))
    for program in BASH_PROGRAMS:
        shutil.copy2(f"/usr/bin/{program}", into / "usr/bin" / program)
        for library in _libraries(Path("/usr/bin") / program):
            target = into / library.relative_to("/")
            # Through the links above, as `ldd` prints /lib/x86_64-linux-gnu on a merged /usr.
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)
    shutil.copy2("/usr/bin/bash", into / "usr/bin/sh")
    return into


def directories(into: Path, but: Iterable[str] = ()) -> None:
    """The directories and files that a runtime or a program expects anywhere."""
    for directory in {"bin", "dev", "etc", "proc", "root", "sys", "tmp"} - set(but):
        (into / directory).mkdir(parents=True, exist_ok=True)
    (into / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (into / "etc/group").write_text("root:x:0:\n")


def _libraries(program: Path) -> list[Path]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]


def write_archive(name: str, tree: Path, command: Sequence[str], archive: Path) -> None:
    """An OCI archive that is imported as `name` (with its tag), of one layer with what is in `tree`.

    Owners become root and times 0: the same content is the same image.
    """
    layer = _tar(tree)
    machine = platform.machine()
    target = {"architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine), "os": "linux"}
    config = _json(
        {
            **target,
            "config": {"Cmd": list(command), "Env": [PATH_VARIABLE]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor("config.v1+json", config),
            "layers": [_descriptor("layer.v1.tar", layer)],
        }
    )
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    index = {
        "schemaVersion": 2,
        "manifests": [{**_descriptor("manifest.v1+json", manifest), "platform": target, "annotations": annotations}],
    }
    with tarfile.open(archive, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json(index))
        for blob in (config, manifest, layer):
            _add(tar, "blobs/sha256/" + _digest(blob).removeprefix("sha256:"), blob)


def _tar(tree: Path) -> bytes:
    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry in sorted(tree.iterdir()):
            tar.add(entry, arcname=entry.name, filter=plain)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _descriptor(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
