//go:build unix

package driver

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Follow follows a server that something else starts, such as a shell, with the
// returned path as its standard output and error.
func Follow(tb testing.TB) (s *Server, path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "output")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		tb.Fatal(err)
	}
	output, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		tb.Fatal(err)
	}
	// Until the server has it, somebody must.
	hold, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		output.Close()
		tb.Fatal(err)
	}
	s = &Server{tb: tb, changed: make(chan struct{})}
	heard := s.changed
	go s.read(output)
	go func() {
		<-heard
		hold.Close()
	}()
	becomeReaper()
	tb.Cleanup(func() {
		hold.Close()
		s.end()
	})
	return s, path
}
