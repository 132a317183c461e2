package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const service = "bentpipe.demo.Satellite"
const chunkBytes = 1 << 16

// runServer serves the demo satellite's methods: server PORT [flags].
func runServer(args []string) error {
	flags := flag.NewFlagSet("server", flag.ExitOnError)
	boot := flags.Float64("boot", 0, "seconds that booting takes")
	table := flags.Int("header-table", -1, "SETTINGS_HEADER_TABLE_SIZE")
	age := flags.Duration("max-age", 0, "GOAWAY after this long")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	time.Sleep(time.Duration(*boot * float64(time.Second)))
	options := []grpc.ServerOption{grpc.ForceServerCodec(rawCodec{}), grpc.MaxRecvMsgSize(64 << 20)}
	if *table >= 0 {
		options = append(options, grpc.HeaderTableSize(uint32(*table)))
	}
	if *age > 0 {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *age}))
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", args[0]))
	if err != nil {
		return err
	}
	server := grpc.NewServer(options...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary("Echo", func(_ context.Context, m []byte) ([]byte, error) { return m, nil }),
			unary("Sleep", sleep),
			unary("Fail", fail),
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Upload", Handler: upload, ClientStreams: true},
			{StreamName: "Download", Handler: download, ServerStreams: true},
			{StreamName: "Chat", Handler: chat, ClientStreams: true, ServerStreams: true},
		},
	}, nil)
	return server.Serve(listener)
}

func unary(name string, call func(context.Context, []byte) ([]byte, error)) grpc.MethodDesc {
	handler := func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var message []byte
		if err := decode(&message); err != nil {
			return nil, err
		}
		answer, err := call(ctx, message)
		return &answer, err
	}
	return grpc.MethodDesc{MethodName: name, Handler: handler}
}

func sleep(ctx context.Context, message []byte) ([]byte, error) {
	seconds, err := strconv.ParseFloat(string(message), 64)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(time.Duration(seconds * float64(time.Second))):
		return []byte("awake"), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func fail(_ context.Context, message []byte) ([]byte, error) {
	code, err := strconv.Atoi(string(message))
	if err != nil {
		return nil, err
	}
	return nil, status.Error(codes.Code(code), "as asked for")
}

func upload(_ any, stream grpc.ServerStream) error {
	digest := sha256.New()
	for {
		var chunk []byte
		err := stream.RecvMsg(&chunk)
		if err == io.EOF {
			answer := []byte(hex.EncodeToString(digest.Sum(nil)))
			return stream.SendMsg(&answer)
		}
		if err != nil {
			return err
		}
		digest.Write(chunk)
	}
}

func download(_ any, stream grpc.ServerStream) error {
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	left, err := strconv.Atoi(string(message))
	if err != nil {
		return err
	}
	block := make([]byte, chunkBytes)
	if _, err := rand.Read(block); err != nil {
		return err
	}
	digest := sha256.New()
	for left > 0 {
		chunk := block[:min(left, chunkBytes)]
		digest.Write(chunk)
		left -= len(chunk)
		if err := stream.SendMsg(&chunk); err != nil {
			return err
		}
	}
	stream.SetTrailer(metadata.Pairs("sha256", hex.EncodeToString(digest.Sum(nil))))
	return nil
}

func chat(_ any, stream grpc.ServerStream) error {
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

// runStrict echoes request bodies over cleartext HTTP/2: strict PORT [--boot SECONDS].
func runStrict(args []string) error {
	flags := flag.NewFlagSet("strict", flag.ExitOnError)
	boot := flags.Float64("boot", 0, "seconds that booting takes")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	time.Sleep(time.Duration(*boot * float64(time.Second)))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{
		Addr:      net.JoinHostPort("127.0.0.1", args[0]),
		Protocols: protocols,
		Handler: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			_, _ = io.Copy(writer, request.Body)
		}),
	}
	return server.ListenAndServe()
}
