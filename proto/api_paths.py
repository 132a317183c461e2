"""What the paths of the control API's requests begin with. Other requests on its ports are for satellites."""

PAGE_PATHS = ("/api/v0/", "/api/v1/")
"""Of its pages. They are answered over HTTP/2 too, for clients such as curl that prefer it."""
REFLECTION_PATH = "/grpc.reflection."
"""Of server reflection. Satellites may have it too, as BuildKit does."""
API_PATHS = tuple(path.encode() for path in ("/api.public.", "/bentpipe.operations.", REFLECTION_PATH, *PAGE_PATHS))
"""Of a connection's first request that is the API's: Compute, LogStream, other services that the Earthly CLI asks for, which
are UNIMPLEMENTED, our own command line's, server reflection, and pages."""
