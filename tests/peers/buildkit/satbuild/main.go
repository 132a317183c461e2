// A build as the Earthly CLI makes it: BuildKit's own client library, with the satellite's name and a session in the metadata
// of every call, and two connections, one to probe and one to work. buildctl can send no metadata.
//
//	satbuild -addr HOST:PORT -ca FILE -org ORG -name NAME -context FOLDER -out FOLDER    (the session: $SATELLITE_TOKEN)
//
// It prints what each step printed, and builds the Dockerfile of the context.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

type options struct {
	addr, ca, org, name, context, out string
}

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", "", "HOST:PORT")
	flag.StringVar(&o.ca, "ca", "", "the CA's certificate, as of SSL_CERT_FILE")
	flag.StringVar(&o.org, "org", "", "the satellite's org")
	flag.StringVar(&o.name, "name", "", "the satellite's name")
	flag.StringVar(&o.context, "context", "", "a folder with a Dockerfile")
	flag.StringVar(&o.out, "out", "", "the folder for the result's files")
	flag.Parse()
	if err := build(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "satbuild:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, o options) error {
	probe, err := o.connect(ctx)
	if err != nil {
		return err
	}
	if _, err = probe.ListWorkers(ctx); err == nil {
		_, err = probe.Info(ctx)
	}
	if closed := probe.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("could not connect to buildkit: %w", err)
	}
	c, err := o.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ListWorkers(ctx); err != nil {
		return err
	}
	files, err := fsutil.NewFS(o.context)
	if err != nil {
		return err
	}
	statuses, shown := make(chan *client.SolveStatus), make(chan struct{})
	go func() {
		defer close(shown)
		for status := range statuses {
			for _, said := range status.Logs {
				os.Stdout.Write(said.Data)
			}
		}
	}()
	_, err = c.Solve(ctx, nil, client.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
		Exports:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: o.out}},
	}, statuses)
	<-shown
	return err
}

// connect opens a connection of its own. With a system's CA the CLI's `:authority` is HOST:PORT.
func (o options) connect(ctx context.Context) (*client.Client, error) {
	pem, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", o.ca)
	}
	return client.New(ctx, "tcp://"+o.addr,
		client.WithGRPCDialOption(grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots}))),
		client.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(o.unary)),
		client.WithGRPCDialOption(grpc.WithChainStreamInterceptor(o.stream)))
}

// named appends the metadata in the CLI's order.
func (o options) named(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx,
		"satellite_name", o.name, "satellite_org", o.org, "satellite_token", os.Getenv("SATELLITE_TOKEN"))
}

func (o options) unary(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(o.named(ctx), method, request, reply, conn, opts...)
}

func (o options) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(o.named(ctx), desc, conn, method, opts...)
}
