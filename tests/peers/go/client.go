package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// order is one line of standard input, answer one line of standard output. Bytes travel as base64.
type order struct {
	Do         string      `json:"do"`
	Target     string      `json:"target"`
	CA         string      `json:"ca"`
	Metadata   [][2]string `json:"metadata"`
	KeepaliveS float64     `json:"keepalive_s"`
	Method     string      `json:"method"`
	Messages   [][]byte    `json:"messages"`
	TimeoutS   float64     `json:"timeout_s"`
	SizeBytes  int         `json:"size_bytes"`
	ChunkBytes int         `json:"chunk_bytes"`
}

type answer struct {
	Messages [][]byte `json:"messages"`
	Code     int      `json:"code"`
	Details  string   `json:"details"`
}

type client struct {
	channel  *grpc.ClientConn
	metadata [][2]string
}

// runClient carries out orders until its standard input ends.
func runClient([]string) error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 256<<20)
	out := json.NewEncoder(os.Stdout)
	var c client
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		messages, err := c.carryOut(o)
		done := answer{Messages: messages}
		if err != nil {
			is := status.Convert(err)
			done = answer{Code: int(is.Code()), Details: is.Message()}
		}
		if err := out.Encode(done); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (c *client) carryOut(o order) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(o.TimeoutS*float64(time.Second)))
	defer cancel()
	for _, pair := range c.metadata {
		ctx = metadata.AppendToOutgoingContext(ctx, pair[0], pair[1])
	}
	path := "/" + service + "/" + o.Method
	switch o.Do {
	case "open":
		return nil, c.open(o)
	case "close":
		return nil, c.channel.Close()
	case "concurrent":
		return c.concurrent(ctx, path, o.Messages)
	case "upload":
		return c.stream(ctx, path, &grpc.StreamDesc{ClientStreams: true}, o.Messages)
	case "chat":
		return c.chat(ctx, path, o.Messages)
	case "download":
		return c.download(ctx, path, o.SizeBytes)
	case "bulk":
		return c.bulk(ctx, path, o.SizeBytes, o.ChunkBytes)
	case "cancel":
		stop, end := context.WithCancel(ctx)
		timer := time.AfterFunc(time.Duration(o.TimeoutS*float64(time.Second)/2), end)
		defer timer.Stop()
		return c.concurrent(stop, path, o.Messages)
	}
	return nil, fmt.Errorf("unknown order %q", o.Do)
}

func (c *client) open(o order) error {
	security := insecure.NewCredentials()
	if o.CA != "" {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(o.CA))
		security = credentials.NewTLS(&tls.Config{RootCAs: pool})
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(64<<20)),
	}
	if o.KeepaliveS > 0 {
		options = append(options, grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: time.Duration(o.KeepaliveS * float64(time.Second)), Timeout: 5 * time.Second,
		}))
	}
	channel, err := grpc.NewClient("passthrough:///"+o.Target, options...)
	c.channel, c.metadata = channel, o.Metadata
	return err
}

func (c *client) concurrent(ctx context.Context, path string, messages [][]byte) ([][]byte, error) {
	answers, errors := make([][]byte, len(messages)), make([]error, len(messages))
	var calls sync.WaitGroup
	for i := range messages {
		calls.Add(1)
		go func() {
			defer calls.Done()
			errors[i] = c.channel.Invoke(ctx, path, &messages[i], &answers[i])
		}()
	}
	calls.Wait()
	for _, err := range errors {
		if err != nil {
			return nil, err
		}
	}
	return answers, nil
}

func (c *client) stream(ctx context.Context, path string, desc *grpc.StreamDesc, messages [][]byte) ([][]byte, error) {
	stream, err := c.channel.NewStream(ctx, desc, path)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		if err := stream.SendMsg(&messages[i]); err != nil && err != io.EOF {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var message []byte
	err = stream.RecvMsg(&message)
	return [][]byte{message}, err
}

func (c *client) chat(ctx context.Context, path string, messages [][]byte) ([][]byte, error) {
	stream, err := c.channel.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err != nil {
		return nil, err
	}
	answers := make([][]byte, len(messages))
	for i := range messages {
		if err := stream.SendMsg(&messages[i]); err != nil {
			return nil, err
		}
		if err := stream.RecvMsg(&answers[i]); err != nil {
			return nil, err
		}
	}
	return answers, stream.CloseSend()
}

func (c *client) download(ctx context.Context, path string, size int) ([][]byte, error) {
	stream, err := c.channel.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return nil, err
	}
	request := []byte(strconv.Itoa(size))
	if err := stream.SendMsg(&request); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	return receiveAll(stream)
}

// bulk sends size bytes up while as many come down; it answers the SHA-256 of what was sent and of what came.
func (c *client) bulk(ctx context.Context, path string, size int, chunk int) ([][]byte, error) {
	stream, err := c.channel.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err != nil {
		return nil, err
	}
	sent := sha256.New()
	failed := make(chan error, 1)
	go func() {
		for at := 0; at < size; at += chunk {
			message := make([]byte, min(chunk, size-at))
			for i := range message {
				message[i] = byte((at + i) * 31 >> 3)
			}
			sent.Write(message)
			if err := stream.SendMsg(&message); err != nil {
				failed <- err
				return
			}
		}
		failed <- stream.CloseSend()
	}()
	received, err := receiveAll(stream)
	if problem := <-failed; problem != nil {
		return nil, problem
	}
	if err != nil {
		return nil, err
	}
	return [][]byte{[]byte(hex.EncodeToString(sent.Sum(nil))), received[0]}, nil
}

// receiveAll answers the SHA-256 of all that comes and how many bytes it was.
func receiveAll(stream grpc.ClientStream) ([][]byte, error) {
	digest, size := sha256.New(), 0
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if err == io.EOF {
			return [][]byte{[]byte(hex.EncodeToString(digest.Sum(nil))), []byte(strconv.Itoa(size))}, nil
		}
		if err != nil {
			return nil, err
		}
		digest.Write(message)
		size += len(message)
	}
}
