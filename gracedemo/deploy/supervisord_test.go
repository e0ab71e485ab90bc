//go:build linux

package deploy

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// Debian's supervisord, with its own configuration file and ours.
func TestSupervisord(t *testing.T) {
	t.Parallel()
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
	copyFile(t, "/etc/supervisor/conf.d/gracedemo.conf", "supervisord.conf")

	supervisord := exec.Command("supervisord", "-n", "-c", config)
	if err := supervisord.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		supervisord.Process.Kill()
		supervisord.Wait()
		if t.Failed() {
			log, _ := os.ReadFile("/var/log/gracedemo.log")
			t.Logf("the demo said:\n%s", log)
			log, _ = os.ReadFile("/var/log/supervisor/supervisord.log")
			t.Logf("supervisord said:\n%s", log)
		}
	})
	serving(t)

	pid := run(t, "supervisorctl", "-c", config, "pid", "gracedemo")
	if argv, err := os.ReadFile("/proc/" + pid + "/cmdline"); err != nil || !strings.HasPrefix(string(argv), "/usr/local/bin/gracedemo\x00-supervise") {
		t.Errorf("supervisord started %q (%v)", argv, err)
	}
	load := driver.StartLoad(t, address, path)
	const restarts = 20
	for n := range restarts {
		if n < 2 {
			run(t, "supervisorctl", "-c", config, "signal", "USR2", "gracedemo")
		} else { // what that does, without waiting for Python
			run(t, "kill", "-USR2", pid)
		}
		load.Await(n + 2)
	}
	t.Logf("%d requests over %d restarts", load.NothingLost(), restarts)
	if now := run(t, "supervisorctl", "-c", config, "pid", "gracedemo"); now != pid {
		t.Errorf("supervisord knows pid %s, before the restarts it was %s", now, pid)
	}
	if status := run(t, "supervisorctl", "-c", config, "status", "gracedemo"); !strings.Contains(status, "RUNNING") {
		t.Errorf("supervisord's status is %s", status)
	}

	// The other way that the file names, and one that says how it went.
	if out := run(t, "gracedemo", "-restart"); out == "" || out == pid {
		t.Errorf("gracedemo -restart printed %q, want the new process", out)
	}

	answered := slowly(t)
	run(t, "supervisorctl", "-c", config, "stop", "gracedemo")
	answered()
	if out, _ := exec.Command("pgrep", "gracedemo").Output(); len(out) > 0 {
		t.Errorf("after the stop these still run: %s", out)
	}
	log, err := os.ReadFile("/var/log/supervisor/supervisord.log")
	if err != nil || !strings.Contains(string(log), "stopped: gracedemo (exit status 0)") {
		t.Errorf("supervisord's log does not tell of a clean stop (%v):\n%s", err, log)
	}
}
