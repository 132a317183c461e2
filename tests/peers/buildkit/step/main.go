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
const burstLines = 512

func main() {
	args := append(os.Args[1:], "", "", "")
	var err error
	switch args[0] {
	case "sum":
		err = sum(args[1])
	case "silence":
		err = silence(args[1])
	case "talk":
		err = talk(args[1], args[2])
	default:
		err = fmt.Errorf("usage: step sum FILE | silence SECONDS | talk BYTES SECONDS   (what follows is for `ps`)")
	}
	if err != nil {
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

// talk prints numbered lines, that many bytes in all, evenly over that many seconds.
func talk(bytes, seconds string) error {
	size, err := strconv.Atoi(bytes)
	if err != nil {
		return err
	}
	duration, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	lines, began := size/lineBytes, time.Now()
	out := bufio.NewWriterSize(os.Stdout, burstLines*lineBytes)
	for number := 0; number < lines; number++ {
		if number%burstLines == 0 {
			due := time.Duration(duration * float64(time.Second) * float64(number) / float64(lines))
			time.Sleep(time.Until(began.Add(due)))
		}
		line := fmt.Sprintf("%d ", number)
		if _, err := out.WriteString(line + strings.Repeat("x", lineBytes-1-len(line)) + "\n"); err != nil {
			return err
		}
	}
	return out.Flush()
}
