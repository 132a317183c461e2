"""`bentpipe demo`: the whole path on one machine, with real gRPC clients and satellites in processes of their own."""
