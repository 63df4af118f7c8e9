"""Runs a command in a container of runc that has the host's files, processes and network, and a seccomp profile.

``python -m tests.kernel.truth.confined BUNDLE PROFILE CAPABILITIES COMMAND…`` becomes that container. PROFILE is a file
as Kubernetes' ``localhostProfile`` has it; what it does not allow ends the process here, so that whoever lives has been
refused nothing. (``errno`` that a rule gives by name, as for clone3, stays an errno.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

KILL = "SCMP_ACT_KILL_PROCESS"


def specification(bundle: Path, profile: Path, capabilities: list[str], command: list[str]) -> dict[str, Any]:
    """The container's ``config.json``."""
    subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
    config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    names = [f"CAP_{name}" for name in capabilities]
    config["process"].update(
        terminal=False,
        args=command,
        cwd=str(Path.cwd()),
        env=[f"{name}={value}" for name, value in os.environ.items()],
        user={"uid": 0, "gid": 0},
        noNewPrivileges=True,
        capabilities={"bounding": names, "effective": names, "permitted": names},
    )
    del config["hostname"]
    # Raising a limit needs CAP_SYS_RESOURCE, which a machine in a cloud may lack.
    del config["process"]["rlimits"]
    config["root"] = {"path": "rootfs", "readonly": False}
    config["mounts"] = [
        {"destination": str(path), "type": "bind", "source": str(path), "options": ["rbind"]}
        for path in sorted(Path("/").iterdir())
        if path.is_dir() and not path.is_symlink()
    ]
    seccomp = json.loads(profile.read_text())
    seccomp["defaultAction"] = KILL
    del seccomp["defaultErrnoRet"]
    config["linux"] = {
        "namespaces": [{"type": "mount"}],
        "cgroupsPath": f"/procmon-confined-{uuid.uuid4().hex}",
        "seccomp": seccomp,
    }
    return config


def main(bundle: Path, profile: Path, capabilities: list[str], command: list[str]) -> None:
    """Become the container."""
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    for path in Path("/").iterdir():
        if path.is_symlink():
            (root / path.name).symlink_to(path.readlink())
    (bundle / "config.json").write_text(json.dumps(specification(bundle, profile, capabilities, command)))
    os.execvp("runc", ["runc", "run", "--bundle", str(bundle), uuid.uuid4().hex])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4:])
