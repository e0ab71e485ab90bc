//go:build linux

package deploy

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

func TestRunit(t *testing.T) {
	t.Parallel()
	need(t, "runsvdir", "sv", "chpst", "svlogd")
	if !driver.Isolate(t) {
		return
	}
	for _, dir := range []string{"/usr/local/bin", "/var/log", "/etc/sv", "/etc/service"} {
		mount(t, dir)
	}
	demo(t, "/usr/local/bin")
	mount(t, "/tmp") // after the build: this checkout may lie there
	const service = "/etc/sv/gracedemo"
	copyDirectory(t, service, "runit")
	if err := os.Symlink(service, "/etc/service/gracedemo"); err != nil {
		t.Fatal(err)
	}
	background(t, "/var/log/gracedemo/current", "runsvdir", "/etc/service")
	sv := func(args ...string) string {
		t.Helper()
		return run(t, "sv", append(args, service)...)
	}
	serving(t)

	status := regexp.MustCompile(`^run: \S+: \(pid (\d+)\)`)
	pid := func() string {
		t.Helper()
		m := status.FindStringSubmatch(sv("status"))
		if m == nil {
			t.Fatalf("sv status says %q", sv("status"))
		}
		return m[1]
	}
	before := pid()
	supervises(t, before)
	restartUnderLoad(t, func(n int) {
		if n%2 == 0 {
			sv("reload")
		} else {
			sv("2")
		}
	})
	if now := pid(); now != before {
		t.Errorf("runsv knows pid %s, before the restarts it was %s", now, before)
	}
	if out := run(t, "chpst", "-u", "nobody", "gracedemo", "-restart"); out == "" || out == before {
		t.Errorf("gracedemo -restart printed %q, want the new process", out)
	}

	answered := slowly(t)
	if out := sv("-w", "70", "stop"); !strings.Contains(out, "down: ") {
		t.Errorf("sv stop says %q", out)
	}
	answered()
	nobodyLeft(t)
}

func TestS6(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	need(t, "s6-svscan", "s6-supervise", "s6-svc", "s6-svstat", "s6-setuidgid")
	if !driver.Isolate(t) {
		return
	}
	for _, dir := range []string{"/usr/local/bin", "/run"} {
		mount(t, dir)
	}
	demo(t, "/usr/local/bin")
	mount(t, "/tmp") // after the build: this checkout may lie there
	const services, service = "/run/service", "/run/service/gracedemo"
	copyDirectory(t, service, "s6")
	background(t, "", "s6-svscan", services)
	serving(t)

	pid := func() string { t.Helper(); return run(t, "s6-svstat", "-o", "pid", service) }
	before := pid()
	supervises(t, before)
	restartUnderLoad(t, func(n int) {
		if n > 0 {
			run(t, "s6-svc", "-2", service)
		} else {
			run(t, "s6-setuidgid", "nobody", "gracedemo", "-restart")
		}
	})
	if now := pid(); now != before {
		t.Errorf("s6-supervise knows pid %s, before the restarts it was %s", now, before)
	}

	answered := slowly(t)
	run(t, "s6-svc", "-wd", "-T", "70000", "-d", service)
	answered()
	if out := run(t, "s6-svstat", "-o", "up,exitcode", service); out != "false 0" {
		t.Errorf("after the stop s6-svstat says %q, want down with exit status 0", out)
	}
	nobodyLeft(t)
}

// copyDirectory copies a directory beside this file, with what can be executed.
func copyDirectory(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// background runs a process manager until the test ends, which then shows what the
// demo has logged if it failed.
func background(t *testing.T, log, name string, args ...string) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Dir = "/" // this directory may be hidden
	// The services may hold the output open for longer than the manager runs.
	cmd.WaitDelay = 1
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(log)
			t.Logf("%s said:\n%s\nthe demo said:\n%s", name, &out, said)
		}
	})
}

// supervises fails the test if the process is not the demo's parent that stays.
func supervises(t *testing.T, pid string) {
	t.Helper()
	if argv, err := os.ReadFile("/proc/" + pid + "/cmdline"); err != nil || !strings.HasPrefix(string(argv), "/usr/local/bin/gracedemo\x00-supervise") {
		t.Errorf("what was started is %q (%v)", argv, err)
	}
}

// nobodyLeft fails the test if a demo still runs.
func nobodyLeft(t *testing.T) {
	t.Helper()
	if left := demosLeft(); len(left) > 0 {
		t.Errorf("after the stop these still run: %s", left)
	}
}

// demosLeft returns the process ids of demos that are listed.
func demosLeft() []byte {
	out, _ := exec.Command("pgrep", "-x", "gracedemo").Output()
	return out
}

// restartUnderLoad restarts up to 20 times, and waits each time until another process
// answers. No request may be lost.
func restartUnderLoad(t *testing.T, restart func(n int)) {
	t.Helper()
	load := driver.StartLoad(t, address, path)
	restarts := driver.Times(20, 10)
	for n := range restarts {
		restart(n)
		load.Await(n + 2)
	}
	t.Logf("%d requests over %d restarts", load.NothingLost(), restarts)
}
