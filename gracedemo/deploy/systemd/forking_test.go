//go:build linux

package deploy

import (
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

func TestForkingAsItStands(t *testing.T) {
	driver.OnlyAll(t)
	systemd.Need(t)
	deploy(t)
	u := systemd.System.Install(t, "gracedemo-forking.service", "", "")
	u.Do("start")
	first := u.MainPID()
	if pid := ask(t, "127.0.0.1:48567"); pid != first {
		t.Errorf("pid %d answers, the main process is pid %d", pid, first)
	}
	stop := load(t, "127.0.0.1:48567", false)
	defer stop()
	old := first
	for range 3 {
		h := hold(t, "127.0.0.1:48568", "/sleep/")
		u.Do("reload")
		pid := awaitAnotherThan(t, "127.0.0.1:48569", old)
		h.finish(old)
		awaitMain(t, u, pid)
		old = pid
	}
	stop()
	u.Do("restart")
	if is, pid := ask(t, "127.0.0.1:48567"), u.MainPID(); is != pid || is == old {
		t.Errorf("after a restart of pid %d, pid %d answers and the main process is pid %d", old, is, pid)
	}
	group := u.Get("ControlGroup")
	u.Do("stop")
	equal(t, u, "Result", "success")
	if left := members(t, group); len(left) > 0 {
		t.Errorf("the service is stopped, and processes %v are left", left)
	}
}
