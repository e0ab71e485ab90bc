package handoff

import (
	"bytes"
	"io"
	"os"
)

// A Program is what a program file is built on: how a process that runs it says that
// it is ready.
type Program int

const (
	Unknown  Program = iota
	Original         // facebookgo/grace: it sends SIGTERM to its parent
	Ours             // this library: it speaks over the control socket
)

// programOf looks into a file. The function table of a Go program, stripped or not,
// names the packages that it is made of.
func programOf(path string) Program {
	f, err := os.Open(path)
	if err != nil {
		return Unknown
	}
	defer f.Close()
	const (
		both = "facebookgo/grace"
		ours = "/internal/handoff"
		more = len(both) + len(ours)
	)
	is := Unknown
	buf := make([]byte, 256<<10)
	for kept := 0; ; {
		n, err := io.ReadFull(f, buf[kept:])
		text := buf[:kept+n]
		last := err != nil
		for {
			i := bytes.Index(text, []byte(both))
			if i < 0 || len(text)-i < more && !last {
				break
			}
			text = text[i+len(both):]
			if bytes.HasPrefix(text, []byte(ours)) {
				return Ours
			}
			if bytes.HasPrefix(text, []byte(".")) || bytes.HasPrefix(text, []byte("/grace")) {
				is = Original
			}
		}
		if last {
			return is
		}
		// What may go on in the next piece.
		text = text[max(0, len(text)-more):]
		kept = copy(buf, text)
	}
}
