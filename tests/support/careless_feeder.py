"""``edged-feed`` without one protection: it acknowledges a message when it arrives, before anybody has stored it."""

from __future__ import annotations

import sys

from edged.feeders import cli, mqtt


class CarelessAcks(mqtt.Acks):
    """Acknowledges at once."""

    def add(self, one: mqtt.Pending) -> None:
        super().add(one)
        super().done(one)

    def done(self, one: mqtt.Pending) -> None:
        pass


if __name__ == "__main__":
    mqtt.Acks = CarelessAcks  # type: ignore[misc]  # the missing protection is the point
    sys.exit(cli.main())
