"""A client of the h2 library, joined in memory with our side of a connection."""

from typing import Protocol

import h2.config
import h2.connection
import h2.events
import h2.settings


class Side(Protocol):
    """Our side: what it has to say."""

    def data_to_send(self) -> bytes: ...


class JoinedClient:
    """The client; a subclass has our side, and says with `hear` what comes of the client's bytes."""

    ours: Side

    def __init__(self, **initial: int) -> None:
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.client.initiate_connection()
        if initial:
            self.client.update_settings({h2.settings.SettingCodes[k]: v for k, v in initial.items()})

    def hear(self, data: bytes) -> None:
        raise NotImplementedError

    def turn(self) -> list[h2.events.Event]:
        """Everything the client said, to us; everything we say, to the client."""
        self.hear(self.client.data_to_send())
        return self.client.receive_data(self.ours.data_to_send())
