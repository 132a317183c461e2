"""By what a satellite is trusted, if that is in no file: the daemon has made it, or a machine has registered it."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from bentpipe.native.engine import Ktls
from bentpipe.native.tls import TlsClientContext


@contextlib.contextmanager
def in_memory(*texts: str) -> Iterator[list[Path]]:
    """Files for libraries that read only files, which never touch a disk (memfd_create(2))."""
    with contextlib.ExitStack() as opened:
        paths = []
        for text in texts:
            file = opened.enter_context(os.fdopen(os.memfd_create("bentpipe", os.MFD_CLOEXEC), "w"))
            file.write(text)
            file.flush()
            paths.append(Path(f"/proc/self/fd/{file.fileno()}"))
        yield paths


@dataclasses.dataclass(frozen=True, slots=True)
class TrustMaterial:
    """Authorities, and the certificate that the satellite is shown with its key; all are PEM."""

    authorities: str
    certificate: str = ""
    """"" if none is shown."""
    key: str = dataclasses.field(default="", repr=False)

    def make_context(self, ktls: Ktls) -> TlsClientContext:
        """Raises TlsError."""
        shown = (self.certificate, self.key) if self.certificate else ()
        with in_memory(self.authorities, *shown) as (ca, *pair):
            certificate, key = pair or (None, None)
            context = TlsClientContext(ca=ca, certificate=certificate, key=key)
        if ktls:
            context.enable_ktls()
        return context
