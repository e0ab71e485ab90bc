//go:build linux

package deploy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

// Type=notify with a PID file, which systemd then follows as well.
func TestPIDFileDoesNotStickInReloading(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	const file = "/run/reloaded/pid"
	d := newDemoWith(t, "gracedemo.service", "-pidfile "+file, "RuntimeDirectory=reloaded", "PIDFile="+file)
	d.Do("start")
	pid := d.MainPID()
	for n := range driver.Times(40, 24) {
		d.Do("reload")
		pid = awaitAnotherThan(t, d.addr, pid)
		awaitMain(t, d.Unit, pid)
		b, err := os.ReadFile(file)
		if is := strings.TrimSpace(string(b)); err != nil || is != strconv.Itoa(pid) {
			t.Fatalf("reload %d: the main process is pid %d, the PID file says %q (%v)", n, pid, is, err)
		}
	}
	equal(t, d.Unit, "NRestarts", "0")
	d.Do("stop")
	equal(t, d.Unit, "Result", "success")
}

// Where systemd does not listen, it would take the end of the predecessor for the end of
// the service. A reload is refused, and the log says what to do.
func TestReloadIsRefusedWhereSystemdDoesNotListen(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	driver.Each(t, []string{"simple", "exec"}, func(t *testing.T, kind string) {
		d := newDemo(t, "gracedemo.service", "Type="+kind, "NotifyAccess=none")
		d.Do("start")
		pid := awaitAnswer(t, d.addr)
		stop := load(t, d.addr, false)
		defer stop()
		for range 2 {
			d.Do("reload")
		}
		d.AwaitLog("Type=notify")
		stop()
		if by := ask(t, d.addr); by != pid || d.MainPID() != pid {
			t.Errorf("pid %d answers and the main process is pid %d, want pid %d", by, d.MainPID(), pid)
		}
		equal(t, d.Unit, "ActiveState", "active")
		equal(t, d.Unit, "NRestarts", "0")
		d.Do("stop")
		equal(t, d.Unit, "Result", "success")
	})
}

// A manager that is too busy to read what it is told does not hold up a restart, and
// knows in the end which process is the main one.
func TestManagerThatDoesNotRead(t *testing.T) {
	driver.OnlyAll(t)
	user, manager := systemd.User(t)
	const addr = "127.0.0.1:22011"
	u := user.Write(t, "unread.service", "[Service]\nType=notify\nExecStart="+systemd.Program(t, "gracedemo")+
		" -a0 "+addr+" -a1 127.0.0.1:22012 -a2 127.0.0.1:22013\n")
	u.Do("start")
	pid := u.MainPID()
	thaw := freeze(t, manager.MainPID())
	fillNotifySocket(t, "/run/user-manager/systemd/notify")

	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	next := awaitAnotherThan(t, addr, pid)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the successor served after %v", took)
	}
	thaw()
	awaitMain(t, u, next)
	if by := ask(t, addr); by != next {
		t.Errorf("pid %d answers, the main process is pid %d", by, next)
	}

	// Nor does it hold up a stop.
	thaw = freeze(t, manager.MainPID())
	fillNotifySocket(t, "/run/user-manager/systemd/notify")
	began = time.Now()
	if err := syscall.Kill(next, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	driver.AwaitRefused(t, "tcp", addr)
	driver.Eventually(t, fmt.Sprintf("pid %d to end", next), func() bool { return ended(next) })
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the stop took %v", took)
	}
	thaw()
	u.Await("ActiveState", "inactive")
	equal(t, u, "Result", "success")
}

// freeze stops a process until thaw is called.
func freeze(t *testing.T, pid int) (thaw func()) {
	t.Helper()
	thaw = sync.OnceFunc(func() { syscall.Kill(pid, syscall.SIGCONT) })
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(thaw)
	driver.Eventually(t, fmt.Sprintf("pid %d to be stopped", pid), func() bool { return state(pid) == "T" })
	return thaw
}

// ended reports whether a process is gone, or would be if its parent asked.
func ended(pid int) bool { s := state(pid); return s == "" || s == "Z" }

// state returns the letter of proc(5), or nothing if there is no such process.
func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// fillNotifySocket sends datagrams until the socket takes no more.
func fillNotifySocket(t *testing.T, path string) {
	t.Helper()
	for {
		// Each sender has a limit of its own, too.
		c, err := net.Dial("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for sent := 0; ; sent++ {
			c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			_, err := c.Write([]byte("X_FILL=1"))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if sent == 0 {
					return
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
