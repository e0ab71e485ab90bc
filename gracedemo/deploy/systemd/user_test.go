//go:build linux

package deploy

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

// Under a user's systemd the parent of a service is not PID 1. It is a stranger all
// the same.
func TestUserManagerIsNotSignalled(t *testing.T) {
	driver.OnlyAll(t)
	user, manager := systemd.User(t)
	managerPID := manager.MainPID()
	const addr = "127.0.0.1:22001"
	const command = " -a0 " + addr + " -a1 127.0.0.1:22002 -a2 127.0.0.1:22003"
	program := systemd.Program(t, "gracedemo")
	for _, kind := range []struct{ name, settings string }{
		{"notify", "Type=notify\nExecStart=" + program + command},
		{"simple", "Type=simple\nNotifyAccess=main\nExecStart=" + program + command},
		// A variable that somebody has left to it.
		{"leaked", "Type=notify\nEnvironment=LISTEN_FDS=1\nExecStart=" + program + command},
		{"supervised", "Type=notify\nExecStart=" + program + command + " -supervise"},
	} {
		t.Run(kind.name, func(t *testing.T) {
			u := user.Write(t, kind.name+".service", "[Service]\n"+kind.settings+"\nExecReload=/bin/kill -USR2 $MAINPID\n")
			u.Do("start")
			pid, before := awaitAnswer(t, addr), 0
			for range 2 {
				h := hold(t, addr, "/sleep/")
				u.Do("reload")
				next := awaitAnotherThan(t, addr, pid)
				h.finish(pid, before)
				pid, before = next, pid
				if kind.name != "supervised" {
					u.Await("MainPID", strconv.Itoa(pid))
					awaitParent(t, pid, managerPID) // when the predecessor has ended
				}
			}
			u.Do("stop")
			equal(t, manager, "MainPID", strconv.Itoa(managerPID))
			equal(t, manager, "ActiveState", "active")
		})
	}

	t.Run("socket", func(t *testing.T) {
		socket := user.Write(t, "activated.socket", "[Socket]\nListenStream="+addr+"\n")
		u := user.Write(t, "activated.service", "[Service]\nType=notify\nExecStart="+program+command+"\nExecReload=/bin/kill -USR2 $MAINPID\n")
		socket.Do("start")
		pid := ask(t, addr)
		u.Await("MainPID", strconv.Itoa(pid))
		stop := load(t, addr, true)
		u.Do("reload")
		next := awaitAnotherThan(t, addr, pid)
		u.Do("restart")
		stop()
		if by := ask(t, addr); by == next || by == pid {
			t.Errorf("pid %d answers, which was stopped", by)
		}
		u.Do("stop")
		equal(t, manager, "MainPID", strconv.Itoa(managerPID))
		equal(t, manager, "ActiveState", "active")
	})
	if log := manager.Journal(); strings.Contains(log, "Received SIG") {
		t.Errorf("the manager was signalled:\n%s", log)
	}
}

// awaitAnswer waits until somebody answers.
func awaitAnswer(t *testing.T, addr string) (pid int) {
	t.Helper()
	c := newClient(addr)
	defer c.CloseIdleConnections()
	driver.Eventually(t, addr+" to answer", func() (answers bool) {
		var err error
		pid, err = c.sleep(0)
		return err == nil
	})
	return pid
}

// awaitParent waits until a process has this parent.
func awaitParent(t *testing.T, pid, want int) {
	t.Helper()
	driver.Eventually(t, fmt.Sprintf("the parent of pid %d to be pid %d", pid, want), func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		return strings.Fields(rest)[1] == strconv.Itoa(want)
	})
}
