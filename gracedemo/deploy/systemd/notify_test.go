//go:build linux

package deploy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

func TestServiceAsItStands(t *testing.T) {
	systemd.Need(t)
	deploy(t)
	u := systemd.System.Install(t, "gracedemo.service", "", "")
	equal(t, u, "NotifyAccess", "main")

	// It is started when it serves, not earlier.
	u.Do("start")
	first := u.MainPID()
	for _, addr := range []string{"127.0.0.1:48567", "[::1]:48568", "127.0.0.1:48569"} {
		if pid := ask(t, addr); pid != first {
			t.Errorf("pid %d answers at %s, the main process is pid %d", pid, addr, first)
		}
	}
	equal(t, u, "StatusText", fmt.Sprintf("Serving with pid %d", first))

	// Reloads, with a request that is under way and many others.
	stop := load(t, "127.0.0.1:48567", false)
	defer stop()
	old := first
	for range 3 {
		h := hold(t, "127.0.0.1:48568", "/sleep/")
		u.Do("reload")
		pid := awaitAnotherThan(t, "127.0.0.1:48569", old)
		u.AwaitStatus(fmt.Sprintf("Main PID: %d (gracedemo)", old), "active (running)", fmt.Sprintf("Serving with pid %d", pid))
		h.finish(old)
		awaitMain(t, u, pid)
		u.AwaitStatus(fmt.Sprintf("Main PID: %d (gracedemo)", pid), "active (running)", fmt.Sprintf("Serving with pid %d", pid))
		old = pid
	}
	stop()
	equal(t, u, "NRestarts", "0")
	log := u.Journal()
	if strings.Contains(log, "only permitted for") {
		t.Error("systemd was told something by a process that it does not trust")
	}
	if strings.Contains(log, "Cannot store") {
		t.Error("systemd was asked to keep what it does not")
	}

	// restart and stop work as on the first day.
	u.Do("restart")
	pid := u.MainPID()
	if pid == old {
		t.Errorf("after a restart the main process is still pid %d", pid)
	}
	if is := ask(t, "127.0.0.1:48567"); is != pid {
		t.Errorf("pid %d answers, the main process is pid %d", is, pid)
	}
	u.Do("reload")
	awaitAnotherThan(t, "127.0.0.1:48569", pid)
	u.Do("stop")
	equal(t, u, "ActiveState", "inactive")
	equal(t, u, "Result", "success")
	if _, err := newClient("127.0.0.1:48567").sleep(0); err == nil {
		t.Error("the service is stopped, and still answers")
	}
}

// With a command that waits for the outcome, systemctl knows it.
func TestReloadFailsWhenTheNewVersionDoes(t *testing.T) {
	systemd.Need(t)
	deploy(t)
	u := systemd.System.Install(t, "gracedemo.service", "", "")
	u.Do("start")
	pid := u.MainPID()
	// The command is the new file too; this one is broken as a server only.
	replace(t, deployed, script(t, "/opt/broken/gracedemo",
		fmt.Sprintf(`[ "$1" = -restart ] && exec %s "$@"; exit 3`, systemd.Program(t, "gracedemo"))))
	for range 2 {
		if err := u.Try("reload"); err == nil {
			t.Error("systemctl reload succeeds with a program that fails")
		}
		if log := u.Journal(); !strings.Contains(log, "gracedemo: grace: successor /usr/local/bin/gracedemo: exit status 3") {
			t.Errorf("the command does not say why:\n%s", log)
		}
		equal(t, u, "SubState", "running")
		if by := ask(t, "127.0.0.1:48567"); by != pid || u.MainPID() != pid {
			t.Errorf("pid %d answers and the main process is pid %d, want pid %d", by, u.MainPID(), pid)
		}
	}
	// Broken as a command as well.
	replace(t, deployed, script(t, "/opt/broken/gracedemo", "exit 3"))
	if err := u.Try("reload"); err == nil {
		t.Error("systemctl reload succeeds with a command that fails")
	}
	deploy(t)
	u.Do("reload")
	if by := ask(t, "127.0.0.1:48567"); by == pid {
		t.Errorf("the reload is over, and pid %d still answers", by)
	}
}

func TestFailedReloadServesOnAndSaysWhy(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := newDemo(t, "gracedemo.service")
	d.Do("start")
	pid := d.MainPID()
	stop := load(t, d.addr, false)
	defer stop()

	replace(t, d.program, script(t, d.program+".broken", "exit 3"))
	d.Do("reload")
	status := d.Await("StatusText", ".*[Ff]ailed.*")
	if !strings.Contains(status, "exit status 3") || !strings.Contains(status, strconv.Itoa(pid)) {
		t.Errorf("the status is %q, want why the restart failed and that pid %d serves", status, pid)
	}
	d.Await("SubState", "running")
	equal(t, d.Unit, "MainPID", strconv.Itoa(pid))
	replace(t, d.program, d.program+".gone")
	d.Do("reload")
	d.Await("StatusText", ".*no such file.*")
	d.Await("SubState", "running")

	replace(t, d.program, systemd.Program(t, "gracedemo"))
	next := d.reload()
	stop()
	d.Await("StatusText", fmt.Sprintf("Serving with pid %d", next))
	d.Do("stop")
	equal(t, d.Unit, "Result", "success")
}

func TestStopFinishesRequests(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	driver.Each(t, []string{"stop", "restart"}, func(t *testing.T, verb string) {
		// The drain takes longer than systemd has patience, if nobody asks for more.
		d := newDemo(t, "gracedemo.service", "TimeoutStopSec=1")
		d.Do("start")
		d.reload()
		pid := d.reload()
		h := hold(t, d.addr, "/sleep/")
		time.AfterFunc(3*time.Second, h.release)
		d.Do(verb)
		h.by(pid)
		if verb == "stop" {
			equal(t, d.Unit, "Result", "success")
		} else if ask(t, d.addr) != d.MainPID() {
			t.Errorf("the main process is not who answers")
		}
	})
}

func TestStatusTellsOfTheDrain(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := newDemo(t, "gracedemo.service")
	d.Do("start")
	old := d.MainPID()
	h := hold(t, d.addr, "/sleep/")
	next := d.reload()
	d.Await("StatusText", fmt.Sprintf("Serving with pid %d; pid %d drains 1 connection.*", next, old))
	// Who asks the successor learns it too.
	driver.Eventually(t, "/status to say what the predecessor holds", func() bool {
		resp, err := http.Get("http://" + d.addr + "/status")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var status gracehttp.Status
		if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
			t.Fatal(err)
		}
		p := status.Predecessor
		return status.Pid == next && p != nil && p.Pid == old && strings.Contains(p.Holds, "drains 1 connection")
	})
	h.finish(old)
	d.Await("StatusText", fmt.Sprintf("Serving with pid %d", next))

	awaitMain(t, d.Unit, next)
	h = hold(t, d.addr, "/sleep/")
	d.Systemctl("stop", "--no-block")
	d.Await("StatusText", "Stopping: 1 connection.*")
	h.finish(next)
	d.Await("ActiveState", "inactive")
}

func TestSlowStartOfASuccessorIsWaitedFor(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := newDemo(t, "gracedemo.service", "TimeoutStartSec=3")
	d.Do("start")
	old := d.MainPID()
	replace(t, d.program, script(t, d.program+".slow",
		fmt.Sprintf("sleep 5; exec %s \"$@\"", systemd.Program(t, "gracedemo"))))
	began := time.Now()
	d.Do("reload")
	d.Await("ActiveState", "reloading|active")
	awaitAnotherThan(t, d.addr, old)
	if took := time.Since(began); took < 4*time.Second {
		t.Fatalf("the successor took %v, not the 5 s that this test is about", took)
	}
	if log := d.Journal(); strings.Contains(log, "timed out") {
		t.Errorf("systemd has lost its patience")
	}
}

func TestWatchdogOverAReload(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := newDemo(t, "gracedemo.service", "WatchdogSec=3", "RestartSec=100ms")
	d.Do("start")
	old := d.MainPID()
	h := hold(t, d.addr, "/sleep/")
	next := d.reload()
	h.finish(old)
	// Several intervals, of which nothing is to be seen.
	h = hold(t, d.addr, "/sleep/")
	time.AfterFunc(7*time.Second, h.release)
	h.by(next)
	equal(t, d.Unit, "MainPID", strconv.Itoa(next))
	equal(t, d.Unit, "NRestarts", "0")

	// One that hangs.
	d.Kill("STOP")
	d.Await("NRestarts", "1")
	d.Await("SubState", "running")
	if pid := ask(t, d.addr); pid == next || pid != d.MainPID() {
		t.Errorf("pid %d answers after pid %d was ended by the watchdog; the main process is pid %d", pid, next, d.MainPID())
	}
	if log := d.Journal(); !strings.Contains(log, "Watchdog timeout") {
		t.Error("it was not the watchdog that ended the service")
	}
}

// A supervisor is the main process all along, and passes on what generations say.
func TestSupervisedService(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := newStoringDemo(t, "WatchdogSec=3", "TimeoutStopSec=1")
	replace(t, d.program, script(t, d.program+".supervised",
		fmt.Sprintf("exec %s -supervise \"$@\"", systemd.Program(t, "gracedemo"))))
	d.Do("start")
	main := d.MainPID()
	pid, before := ask(t, d.addr), 0
	if pid == main {
		t.Fatalf("pid %d, the main process, answers; want a generation", pid)
	}
	d.Await("NFileDescriptorStore", "4")
	for range 2 {
		h := hold(t, d.addr, "/sleep/")
		d.Do("reload")
		next := awaitAnotherThan(t, d.addr, pid)
		d.Await("StatusText", fmt.Sprintf("Serving with pid %d.*", next))
		h.finish(pid, before)
		pid, before = next, pid
	}
	// Several intervals of the watchdog.
	h := hold(t, d.addr, "/sleep/")
	time.AfterFunc(7*time.Second, h.release)
	h.by(pid, before)
	equal(t, d.Unit, "MainPID", strconv.Itoa(main))
	equal(t, d.Unit, "NFileDescriptorStore", "4")

	h = hold(t, d.addr, "/sleep/")
	time.AfterFunc(3*time.Second, h.release)
	d.Do("stop")
	h.by(pid)
	equal(t, d.Unit, "Result", "success")
	if log := d.Journal(); strings.Contains(log, "only permitted for") {
		t.Error("systemd was told something by a process that it does not trust")
	}
}
