// The Go peers of the matrix: a satellite on grpc-go, one on net/http (whose HTTP/2 ends a connection on an ACK that it
// did not ask for), and a grpc-go client that is told what to do by JSON lines on its standard input.
package main

import (
	"fmt"
	"os"
)

func main() {
	roles := map[string]func([]string) error{"server": runServer, "strict": runStrict, "client": runClient}
	if len(os.Args) < 2 || roles[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: peer server|strict|client …")
		os.Exit(2)
	}
	if err := roles[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// rawCodec passes messages as the bytes they are, under the name that every peer expects.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
