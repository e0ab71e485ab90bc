//go:build linux

package deploy

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A process that is killed around a reload. While the predecessor drains it takes over
// again, and systemd need not do anything; after that, Restart=on-failure acts.
func TestCrashAroundAReload(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	settings := []string{"Restart=on-failure", "RestartSec=100ms", "DynamicUser=no"}

	t.Run("successor, young", func(t *testing.T) {
		t.Parallel()
		faults := t.TempDir()
		d := newDemo(t, "gracedemo.service", settings...)
		d.useTestServer("-faults", faults)
		d.Do("start")
		old := d.MainPID()
		h := hold(t, d.addr, d.held)
		fault := filepath.Join(faults, "kill-ready")
		if err := os.WriteFile(fault, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		d.Do("reload")
		d.AwaitLog("serving again")
		if err := os.Remove(fault); err != nil {
			t.Fatal(err)
		}
		h.finish(old)
		d.rolledBack(old)
	})

	t.Run("successor, in the drain", func(t *testing.T) {
		t.Parallel()
		d := newDemo(t, "gracedemo.service", settings...)
		d.Do("start")
		old := d.MainPID()
		h := hold(t, d.addr, d.held)
		next := d.reload()
		driver.Instant(t, 1500*time.Millisecond) // not only at its begin
		kill(t, next)
		d.AwaitLog("serving again")
		h.finish(old)
		d.rolledBack(old)
	})

	t.Run("successor, in the standby", func(t *testing.T) {
		t.Parallel()
		d := newDemo(t, "gracedemo.service", settings...)
		d.useTestServer("-standby 1m")
		d.Do("start")
		old := d.MainPID()
		next := d.reload()
		driver.Instant(t, 1500*time.Millisecond) // not only at its begin
		kill(t, next)
		d.AwaitLog("serving again")
		d.rolledBack(old)
	})

	t.Run("successor, after the drain", func(t *testing.T) {
		t.Parallel()
		d := newDemo(t, "gracedemo.service", settings...)
		d.Do("start")
		next := d.reload()
		awaitMain(t, d.Unit, next)
		kill(t, next)
		d.restarted(next)
	})

	// The service ends with its main process. What the successor has begun is finished.
	t.Run("predecessor, in the drain", func(t *testing.T) {
		t.Parallel()
		d := newDemo(t, "gracedemo.service", settings...)
		d.Do("start")
		old := d.MainPID()
		hold(t, d.addr, d.held) // this one is lost
		next := d.reload()
		h := hold(t, d.addr, d.held)
		kill(t, old)
		time.AfterFunc(500*time.Millisecond, h.release)
		h.by(next)
		d.restarted(next)
	})
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("killing pid %d: %v", pid, err)
	}
}

// rolledBack checks that the process has taken over again, for good.
func (d *demo) rolledBack(pid int) {
	d.t.Helper()
	awaitMain(d.t, d.Unit, pid)
	hold(d.t, d.addr, d.held).finish(pid)
	next := d.reload()
	hold(d.t, d.addr, d.held).finish(next)
	equal(d.t, d.Unit, "NRestarts", "0")
	d.Do("stop")
	equal(d.t, d.Unit, "Result", "success")
}

// restarted checks that systemd has started another process than this.
func (d *demo) restarted(old int) {
	d.t.Helper()
	d.Await("NRestarts", "1")
	d.Await("SubState", "running")
	if pid := ask(d.t, d.addr); pid == old || pid != d.MainPID() {
		d.t.Errorf("pid %d answers, pid %d was killed, and the main process is pid %d", pid, old, d.MainPID())
	}
	d.Do("stop")
	equal(d.t, d.Unit, "Result", "success")
}
