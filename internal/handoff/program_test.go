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

func TestProgramIsReadFromTheFile(t *testing.T) {
	t.Parallel()
	stripped := func(pkg string) string {
		path := filepath.Join(t.TempDir(), "stripped")
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		return path
	}
	const testserver = "github.com/facebookgo/grace/internal/testserver"
	for _, test := range []struct {
		name, path string
		want       Program
	}{
		{"ours", driver.Binary(t), Ours},
		{"ours, stripped", stripped(testserver), Ours},
		{"original", driver.Original(t), Original},
		{"original, stripped", stripped(testserver + "/original"), Original},
		{"neither", driver.Stranger(t), Unknown},
		{"a shell", "/bin/sh", Unknown},
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
	}{{original, Original}, {net, Original}, {ours, Ours}, {path, Unknown}} {
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
	check([]byte("facebookgo/grace"), Unknown, "half a name", 0)
	check(nil, Unknown, "nothing", 0)
}
