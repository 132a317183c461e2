"""The wire: HTTP/2 greeting and gRPC status. Sans-IO: imports neither trio nor socket."""
