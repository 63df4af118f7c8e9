"""Names of container images, taken apart."""

from __future__ import annotations

from typing import NamedTuple


class ImageReference(NamedTuple):
    """A container image's name taken apart: ``docker.io/tgraf/netperf:latest@sha256:…``."""

    name: str | None
    tag: str | None
    digest: str | None


def image_reference(text: str) -> ImageReference:
    """Take a container image's name apart. What is only an id (``sha256:…``) has a digest and no name.

    A scheme before it (``docker-pullable://``, from the kubelet) is dropped. A colon begins a tag only after the last
    slash; before that it begins a registry's port.
    """
    text = text.rpartition("://")[2]
    if text.startswith("sha256:"):
        return ImageReference(None, None, text)
    rest, _, digest = text.partition("@")
    path, slash, last = rest.rpartition("/")
    last, _, tag = last.partition(":")
    return ImageReference(f"{path}{slash}{last}" or None, tag or None, digest or None)
