//go:build linux

package deploy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

// Type=notify-reload: systemctl reload waits for the successor.

func TestNotifyReloadAsItStands(t *testing.T) {
	driver.OnlyAll(t)
	systemd.NeedVersion(t, 253, "Type=notify-reload")
	deploy(t)
	u := systemd.System.Install(t, "gracedemo-notify-reload.service", "", "")
	u.Do("start")
	equal(t, u, "NotifyAccess", "main")
	stop := load(t, "127.0.0.1:48567", false)
	defer stop()
	old := u.MainPID()
	for range 3 {
		h := hold(t, "127.0.0.1:48568", "/sleep/")
		u.Do("reload")
		// It serves; the predecessor may still take a connection or two.
		m := regexp.MustCompile(`^Serving with pid (\d+)`).FindStringSubmatch(u.Get("StatusText"))
		if m == nil || m[1] == strconv.Itoa(old) {
			t.Errorf("the service is reloaded, pid %d is the old one, and the status is %q", old, u.Get("StatusText"))
		}
		pid := awaitAnotherThan(t, "127.0.0.1:48569", old)
		h.finish(old)
		awaitMain(t, u, pid)
		old = pid
	}
	// One right after the other.
	for range 3 {
		u.Do("reload")
		old = awaitAnotherThan(t, "127.0.0.1:48569", old)
	}
	stop()
	awaitMain(t, u, old)
	u.Do("stop")
	equal(t, u, "Result", "success")
	if log := u.Journal(); strings.Contains(log, "timed out") {
		t.Error("systemd has lost its patience")
	}
}

func TestNotifyReloadWaitsForASlowSuccessor(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	systemd.NeedVersion(t, 253, "Type=notify-reload")
	d := newDemo(t, "gracedemo-notify-reload.service", "TimeoutStartSec=3")
	d.Do("start")
	old := d.MainPID()
	replace(t, d.program, script(t, d.program+".slow",
		fmt.Sprintf("sleep 5; exec %s \"$@\"", systemd.Program(t, "gracedemo"))))
	began := time.Now()
	d.Do("reload")
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("the reload took %v, not the 5 s of the successor", took)
	}
	awaitAnotherThan(t, d.addr, old)
}

func TestNotifyReloadThatFails(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	systemd.NeedVersion(t, 253, "Type=notify-reload")
	d := newDemo(t, "gracedemo-notify-reload.service")
	d.Do("start")
	pid := d.MainPID()
	replace(t, d.program, script(t, d.program+".broken", "exit 3"))
	// systemd has no word for it; STATUS= has.
	d.Do("reload")
	equal(t, d.Unit, "SubState", "running")
	if status := d.Get("StatusText"); !strings.Contains(status, "exit status 3") {
		t.Errorf("the status is %q, want why the restart failed", status)
	}
	if by := ask(t, d.addr); by != pid || d.MainPID() != pid {
		t.Errorf("pid %d answers and the main process is pid %d, want pid %d", by, d.MainPID(), pid)
	}
	replace(t, d.program, systemd.Program(t, "gracedemo"))
	d.Do("reload")
	awaitAnotherThan(t, d.addr, pid)
}
