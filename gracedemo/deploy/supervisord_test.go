//go:build linux

package deploy

import (
	"os"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// Debian's supervisord, with its own configuration file and ours.
func TestSupervisord(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	need(t, "supervisord", "supervisorctl")
	const config = "/etc/supervisor/supervisord.conf"
	if _, err := os.Stat(config); err != nil {
		t.Skip("supervisord is not set up as Debian's: ", err)
	}
	if !driver.Isolate(t) {
		return
	}
	for _, dir := range []string{"/usr/local/bin", "/etc/supervisor/conf.d", "/var/log", "/run"} {
		mount(t, dir)
	}
	if err := os.Mkdir("/var/log/supervisor", 0o755); err != nil {
		t.Fatal(err)
	}
	demo(t, "/usr/local/bin")
	mount(t, "/tmp") // after the build: this checkout may lie there
	copyFile(t, "/etc/supervisor/conf.d/gracedemo.conf", "supervisord.conf")

	background(t, "/var/log/gracedemo.log", "supervisord", "-n", "-c", config)
	serving(t)

	pid := run(t, "supervisorctl", "-c", config, "pid", "gracedemo")
	supervises(t, pid)
	restartUnderLoad(t, func(n int) {
		if n < 2 {
			run(t, "supervisorctl", "-c", config, "signal", "USR2", "gracedemo")
		} else { // what that does, without waiting for Python
			run(t, "kill", "-USR2", pid)
		}
	})
	if now := run(t, "supervisorctl", "-c", config, "pid", "gracedemo"); now != pid {
		t.Errorf("supervisord knows pid %s, before the restarts it was %s", now, pid)
	}
	if status := run(t, "supervisorctl", "-c", config, "status", "gracedemo"); !strings.Contains(status, "RUNNING") {
		t.Errorf("supervisord's status is %s", status)
	}

	// The other way that the file names, and one that says how it went.
	if out := run(t, "runuser", "-u", "nobody", "--", "gracedemo", "-restart"); out == "" || out == pid {
		t.Errorf("gracedemo -restart printed %q, want the new process", out)
	}

	answered := slowly(t)
	run(t, "supervisorctl", "-c", config, "stop", "gracedemo")
	answered()
	nobodyLeft(t)
	log, err := os.ReadFile("/var/log/supervisor/supervisord.log")
	if err != nil || !strings.Contains(string(log), "stopped: gracedemo (exit status 0)") {
		t.Errorf("supervisord's log does not tell of a clean stop (%v):\n%s", err, log)
	}
}
