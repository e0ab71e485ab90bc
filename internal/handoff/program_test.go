//go:build unix

package handoff

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// originalModule is as little as a program has of facebookgo/grace.
var originalModule = map[string]string{
	"go.mod":          "module github.com/facebookgo/grace",
	"gracenet/net.go": "package gracenet\n\n//go:noinline\nfunc Listen() { println() }",
	"main/main.go":    "package main\n\nimport \"github.com/facebookgo/grace/gracenet\"\n\nfunc main() { gracenet.Listen() }",
}

func TestProgramIsReadFromTheFile(t *testing.T) {
	t.Parallel()
	driver.NotShort(t)
	module := t.TempDir()
	for name, text := range originalModule {
		path := filepath.Join(module, name)
		os.Mkdir(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := func(dir, pkg string, flags ...string) string {
		path := filepath.Join(t.TempDir(), "program")
		build := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), pkg)...)
		build.Dir = dir
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		return path
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	gotool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path string
		want       Program
	}{
		{"ours", self, Ours},
		{"ours, stripped", build(".", "./testdata/ours", "-trimpath", "-ldflags=-s -w"), Ours},
		{"original", build(module, "./main"), Original},
		{"original, stripped", build(module, "./main", "-trimpath", "-ldflags=-s -w"), Original},
		{"a Go program", gotool, Neither},
		{"a shell", "/bin/sh", Neither},
		{"a directory", t.TempDir(), Unknown},
		{"nothing", filepath.Join(t.TempDir(), "nothing"), Unknown},
	} {
		if got := programOf(test.path); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

// The file is read in pieces.
func TestNamesAreFoundAcrossPieces(t *testing.T) {
	const (
		piece    = 256 << 10
		original = "github.com/facebookgo/grace.Wait"
		net      = "github.com/facebookgo/grace/gracenet.(*Net).Listen"
		ours     = "github.com/facebookgo/grace/internal/handoff.Self"
		path     = "github.com/facebookgo/grace-tools/x" // another's
	)
	file := filepath.Join(t.TempDir(), "program")
	check := func(content []byte, want Program, what string, at int) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := programOf(file); got != want {
			t.Fatalf("%s at %d of %d bytes: %d, want %d", what, at, len(content), got, want)
		}
	}
	content := bytes.Repeat([]byte{'x'}, piece+100)
	for _, test := range []struct {
		name string
		want Program
	}{{original, Original}, {net, Original}, {ours, Ours}, {path, Neither}} {
		for at := piece - len(test.name); at <= piece; at++ {
			copy(content[at:], test.name)
			check(content, test.want, test.name, at)
			for i := range test.name {
				content[at+i] = 'x'
			}
		}
		check(append(content, test.name...), test.want, test.name, len(content))
	}
	// This library's own programs have all names.
	check([]byte(original+net+ours), Ours, "all", 0)
	check([]byte(ours+net+original), Ours, "all", 0)
	check([]byte("facebookgo/grace"), Neither, "half a name", 0)
	check(nil, Neither, "nothing", 0)
}
