"""All peers, in the order in which tables show them."""

from bench.peers.base import Direct, Peer
from bench.peers.others import Envoy, HaproxyHttp, HaproxyTcp, Nginx, PythonProxy, SocketProxyd
from bench.peers.ours import Bentpipe


def all_peers() -> list[Peer]:
    """Fresh ones, not started. The second direct one shows the noise of the machine."""
    return [
        Direct(),
        Direct("direct again"),
        Bentpipe(),
        HaproxyTcp(splice=False),
        HaproxyTcp(splice=True),
        SocketProxyd(),
        HaproxyHttp(),
        Envoy(),
        Nginx(),
        PythonProxy(),
    ]


L7_NAMES = ("haproxy http", "envoy", "nginx")
"""What claims compare with: the best of these."""
