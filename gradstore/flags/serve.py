"""Flags of `gradstore serve`."""

from __future__ import annotations

import ipaddress

from pydantic import Field

from gradstore.flags.dataset import Device  # noqa: TC001 (pydantic reads it)
from gradstore.flags.question import QueryEvents


class ServeConfig(QueryEvents):
    """Options of `gradstore serve`."""

    store: str = Field(description="the training store to search")
    queries: str | None = Field(
        None, description="a query store, such as gradstore query leaves in its folder"
    )
    checkpoints: list[str] | None = Field(
        None, description="the store's checkpoints, if they moved [default: recorded paths]"
    )
    base: str | None = Field(
        None, description="the base of the store's checkpoints, if it moved [default: as recorded]"
    )
    dataset: str | None = Field(
        None, description="the training images, if they moved [default: as recorded]"
    )
    images: str | None = Field(
        None, description="the images of --queries, if they moved [default: as recorded]"
    )
    host: str = Field("127.0.0.1", description="address to listen on; others need the token")
    port: int = Field(8765, ge=0, le=65535, description="port to listen on; 0 for any free one")
    token: str | None = Field(
        None,
        min_length=16,
        max_length=200,
        pattern="^[A-Za-z0-9_-]+$",
        description="secret that a browser must give [default: none on this machine's own address, "
        "else a random one]",
    )
    no_browser: bool = Field(False, description="do not open a browser")
    memory: float = Field(4.0, gt=0, lt=1e6, description="GiB of memory in addition to the models")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")
    skip_unsealed: bool = Field(
        False, description="omit training samples that are not collected yet"
    )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"
