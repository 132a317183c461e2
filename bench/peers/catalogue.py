"""All peers, in the order in which tables show them."""

from bench.peers.base import Direct, Peer
from bench.peers.others import Envoy, HaproxyHttp, HaproxyTcp, Nginx, SocketProxyd, python_obvious, python_uvloop
from bench.peers.ours import Bentpipe


def all_peers() -> list[Peer]:
    """Fresh ones, not started. The second direct one shows the noise of the machine."""
    return [
        Direct(),
        Direct("direct again"),
        Bentpipe(),
        Bentpipe(data_plane="process"),
        Bentpipe(data_plane="process", variant="snapshot"),
        HaproxyTcp(splice=False),
        HaproxyTcp(splice=True),
        SocketProxyd(),
        HaproxyHttp(),
        Envoy(),
        Nginx(),
        python_uvloop(),
        python_obvious(),
    ]


def distinct_peers() -> list[Peer]:
    """The peers for questions about neither streams nor noise: without the second `direct` and the pure splicers."""
    return [peer for peer in all_peers() if peer.name not in ("direct again", "haproxy tcp splice", "socket-proxyd")]


L7_NAMES = ("haproxy http", "envoy", "nginx")
"""Claims compare with the best of these."""
