package handoff

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A Program is what a program file is built on: how a process that runs it says that
// it is ready.
type Program int

const (
	Unknown  Program = iota // its file cannot be read
	Neither                 // of the two that follow
	Original                // facebookgo/grace: it sends SIGTERM to its parent
	Ours                    // this library: it speaks over the control socket
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
		original = "facebookgo/grace"
		ours     = original + "/internal/handoff"
	)
	is := Neither
	buf := make([]byte, 256<<10)
	for kept := 0; ; {
		n, err := io.ReadFull(f, buf[kept:])
		text := buf[:kept+n]
		switch {
		case bytes.Contains(text, []byte(ours)):
			return Ours
		case bytes.Contains(text, []byte(original+".")), bytes.Contains(text, []byte(original+"/grace")):
			is = Original
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return is
		default:
			return Unknown
		}
		kept = copy(buf, text[len(text)-len(ours):]) // what may go on in the next piece
	}
}

// startPath returns the program to start, looked up anew.
func startPath() (string, error) {
	path, err := born.file, error(nil)
	if path == "" {
		path, err = born.lookUp()
	}
	if err != nil {
		return "", fmt.Errorf("starting %s: %w", born.args[0], err)
	}
	if born.dirErr != nil {
		return "", fmt.Errorf("starting %s: the directory of the start is not known: %w", path, born.dirErr)
	}
	if _, err := os.Stat(born.dir); err != nil {
		return "", fmt.Errorf("starting %s in the directory of the start: %w", path, err)
	}
	return path, nil
}

// startProgram looks into the file that is about to run.
func startProgram(path string) Program {
	if !filepath.IsAbs(path) {
		path = filepath.Join(born.dir, path)
	}
	if sameFile(path, "/proc/self/exe") { // which stays the same when the file was replaced
		return Ours
	}
	return programOf(path)
}

// Program0 is the command line's first word, as this process was started with it.
func Program0() string { return born.args[0] }

// Runs reports whether a process runs this process's program.
func Runs(pid int) bool { return pid > 0 && kill(pid, 0) == nil && parentOf(pid).same }
