// The one program in the images that the tests build FROM scratch: static, and all that a RUN can execute there.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

const lineBytes = 128

func main() {
	roles := map[string]func(string) error{"sum": sum, "silence": silence, "talk": talk}
	if len(os.Args) < 3 || roles[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: step sum FILE | silence SECONDS | talk BYTES   (further arguments are for `ps`)")
		os.Exit(2)
	}
	if err := roles[os.Args[1]](os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// sum writes the file's SHA-256 beside it.
func sum(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, file); err != nil {
		return err
	}
	return os.WriteFile(path+".sum", []byte(hex.EncodeToString(digest.Sum(nil))), 0o644)
}

// silence says nothing for that long.
func silence(seconds string) error {
	duration, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	time.Sleep(time.Duration(duration * float64(time.Second)))
	return nil
}

// talk prints numbered lines, that many bytes in all.
func talk(bytes string) error {
	size, err := strconv.Atoi(bytes)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<16)
	for number := 0; number < size/lineBytes; number++ {
		line := fmt.Sprintf("%d ", number)
		if _, err := out.WriteString(line + strings.Repeat("x", lineBytes-1-len(line)) + "\n"); err != nil {
			return err
		}
	}
	return out.Flush()
}
