//go:build linux

// Package deploy tests the files beside it with the programs that they are for.
package deploy

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

func TestMain(m *testing.M) { os.Exit(driver.Run(m)) }

// root is the root of the module.
const root = "../.."

// The demo's own addresses: the tests are alone in their network.
const (
	address = "127.0.0.1:48567"
	path    = "/sleep/?duration=0s"
)

// run runs a command and returns what it prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return output(t, exec.Command(name, args...))
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// mount puts an empty directory over a path, in the namespace of the test.
func mount(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
		t.Fatalf("mounting on %s: %v", path, err)
	}
	t.Cleanup(func() { syscall.Unmount(path, 2) }) // MNT_DETACH
}

// copyFile copies a file of this directory.
func copyFile(t *testing.T, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// serving waits until the demo answers.
func serving(t *testing.T) {
	t.Helper()
	driver.Eventually(t, "the demo to answer", func() bool {
		resp, err := http.Get("http://" + address + path)
		if err == nil {
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
		}
		return err == nil
	})
}

// slowly sends a request that takes two seconds. The returned function waits for
// the answer.
func slowly(t *testing.T) (answered func()) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(driver.Patience))
	if _, err := io.WriteString(c, "GET /sleep/?duration=2s HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		answer, err := io.ReadAll(c)
		if err != nil || !strings.Contains(string(answer), "slept for 2s from pid") {
			t.Errorf("a request had begun when the demo was stopped; its answer: %q %v", answer, err)
		}
	}
}

// need skips the test where a program is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s here", program)
		}
	}
}

func TestBalancersTakeTheirConfigurations(t *testing.T) {
	t.Run("haproxy", func(t *testing.T) {
		need(t, "haproxy")
		run(t, "haproxy", "-c", "-f", "fleet/haproxy.cfg")
	})
	t.Run("nginx", func(t *testing.T) {
		need(t, "nginx")
		file, err := filepath.Abs("fleet/nginx.conf")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		main := filepath.Join(dir, "main.conf")
		if err := os.WriteFile(main, []byte("pid pid; error_log stderr; events {} http { access_log off; include "+file+"; }"), 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "nginx", "-t", "-p", dir, "-c", main)
	})
}

// demo builds the demo as it is deployed.
func demo(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(dir, "gracedemo")
	if err := driver.Build(program, "github.com/facebookgo/grace/gracedemo"); err != nil {
		t.Fatal(err)
	}
	return program
}
