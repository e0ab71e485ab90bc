//go:build linux

package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

func TestMonit(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	need(t, "monit", "setpriv", "tini")
	if !driver.Isolate(t) {
		return
	}
	for _, dir := range []string{"/usr/local/bin", "/run", "/var/log"} {
		mount(t, dir)
	}
	demo(t, "/usr/local/bin")
	mount(t, "/tmp") // after the build: this checkout may lie there
	dir := t.TempDir()
	copyFile(t, filepath.Join(dir, "gracedemo"), "monit.conf")
	control := filepath.Join(dir, "monitrc")
	text := strings.ReplaceAll(`
set daemon 1
set pidfile DIR/pid
set idfile DIR/id
set statefile DIR/state
set httpd unixsocket DIR/socket allow admin:monit
include DIR/gracedemo
`, "DIR", dir)
	if err := os.WriteFile(control, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Whoever is the first process waits for those that have lost their parent.
	background(t, "/var/log/gracedemo.log", "tini", "-s", "--", "monit", "-I", "-c", control)
	monit := func(args ...string) string {
		t.Helper()
		return run(t, "monit", append([]string{"-c", control}, args...)...)
	}
	pid := func() string {
		t.Helper()
		b, err := os.ReadFile("/run/gracedemo/pid")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}

	serving(t) // it was not there, so monit has started it
	last := ""
	restartUnderLoad(t, func(int) {
		driver.Eventually(t, "the PID file to name another process", func() bool { return pid() != last })
		last = pid()
		run(t, "kill", "-USR2", last)
	})
	driver.Eventually(t, "the PID file to name another process", func() bool { return pid() != last })
	running := func(pid string) func() bool {
		return func() bool {
			status := strings.Join(strings.Fields(monit("status", "gracedemo")), " ")
			return strings.Contains(status, "status OK") && strings.Contains(status, " pid "+pid+" ")
		}
	}
	driver.Eventually(t, "monit to see pid "+pid(), running(pid()))

	// It starts what has crashed.
	crashed := pid()
	run(t, "kill", "-KILL", crashed)
	driver.Eventually(t, "monit to start another process", func() bool { return pid() != crashed })
	serving(t)
	driver.Eventually(t, "monit to see pid "+pid(), running(pid()))

	answered := slowly(t)
	monit("stop", "gracedemo")
	answered()
	// monit asks for the stop. The process ends after its last answer, and is listed until
	// tini has waited for it.
	driver.Eventually(t, "the demo to end", func() bool { return len(demosLeft()) == 0 })
	driver.AwaitRefused(t, "tcp", address)
}
