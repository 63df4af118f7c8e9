"""Makes an image of directories of this machine, which a booted kernel mounts at the same places (``run --image``).

A guest sees this machine's files by 9p, where each look at a name is a message to qemu: Python, which looks for
hundreds of names before it runs anything, and a compiler that reads a thousand headers, wait for little else. From an
image of ext4 they read as from a disk.

    python -m tests.kernel.boot.image FILE [DIRECTORY…]

By default the directories are those that this Python reads its modules from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

MOUNTS = "mounts"
"""A file in the image's root: the directories in it, one on a line, beginning with a slash."""

# Neither is imported by a test: other environments' packages, and the standard library's own tests.
LEFT_OUT = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "ensurepip", "*.a")


def python_directories() -> list[Path]:
    """Where this Python reads its modules: of the standard library, and of its virtual environment."""
    paths = sysconfig.get_paths()
    return sorted({Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def make_image(image: Path, directories: list[Path]) -> None:
    """Write `image`, with `directories` in it, or raise OSError or CalledProcessError.

    `LEFT_OUT` is not in it, unless it is named itself. It is complete when it is there: no other run sees half of one.
    """
    # One that lies in another is with it already.
    wanted = [each for each in directories if each.is_dir()]
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".image.") as work:
        tree, unfinished = Path(work, "tree"), Path(work, "image")
        for directory in wanted:
            copy = tree / directory.relative_to("/")
            shutil.copytree(
                directory,
                copy,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=LEFT_OUT,
                copy_function=_link,
                ignore_dangling_symlinks=True,
            )
        (tree / MOUNTS).write_text("".join(f"{directory}\n" for directory in wanted))
        # Blocks of 4 KiB and one inode for each file; some more for what ext4 itself needs.
        sizes = [path.lstat().st_size for path in tree.rglob("*")]
        kib = sum((size + 4095) // 4096 * 4 for size in sizes) * 9 // 8 + len(sizes) // 2 + 16384
        subprocess.run(
            [
                *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-N", str(len(sizes) + 1024), "-m", "0"),
                *("-d", tree, unfinished, f"{kib}k"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
        )
        unfinished.replace(image)


def _link(source: str, target: str) -> None:
    """As a copy that takes no room, where both are in one file system."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


if __name__ == "__main__":
    make_image(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]] or python_directories())
