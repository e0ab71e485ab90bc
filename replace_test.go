//go:build unix

package grace_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// oldProgram is what a program of 2015 looks like.
const oldProgram = `package main

import (
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracehttp"
	"github.com/facebookgo/grace/gracenet"
)

var (
	_ grace.Listener
	_ gracenet.Net
)

func main() {
	err := gracehttp.Serve(&http.Server{
		Addr: "127.0.0.1:0",
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, os.Getpid())
		}),
	})
	if err != nil {
		log.Fatal(err)
	}
}
`

func TestOldProgramNeedsOneReplaceLine(t *testing.T) {
	driver.OnlyAll(t)
	repo, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string]string{
		"main.go": oldProgram,
		"go.mod": "module old\n\ngo 1.24\n\nrequire github.com/facebookgo/grace v0.0.0-20180706040059-75cf19382434\n" +
			"\nreplace github.com/facebookgo/grace => " + repo + "\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", "old", ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}

	s := driver.Command{Path: filepath.Join(dir, "old")}.Start(t)
	serving := s.Line(`Serving (\S+) with pid (\d+)`)
	first := s.First()
	if got := get(t, serving[1]); got != fmt.Sprint(first.Pid) {
		t.Fatalf("answered by pid %s, want %d", got, first.Pid)
	}
	first.Signal(syscall.SIGUSR2)
	again := s.Line(`Serving (\S+) with pid (\d+), taking over`)
	first.WaitExit(0)
	if again[1] != serving[1] {
		t.Errorf("the successor serves %s, want %s", again[1], serving[1])
	}
	if got := get(t, again[1]); got != again[2] {
		t.Errorf("after the restart answered by pid %s, want %s", got, again[2])
	}
}

func get(t *testing.T, addr string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
