//go:build linux

package deploy

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

var killModes = []string{"control-group", "mixed", "process"} // all that let a service finish

// A stop, however it is asked for and whenever in the drain, finishes the requests of
// both processes, and is a success.
func TestStopInADrain(t *testing.T) {
	t.Parallel()
	i := 0
	for _, mode := range killModes {
		for _, how := range []stop{
			{name: "stop", command: []string{"stop", "--no-block"}},
			{name: "restart", command: []string{"restart", "--no-block"}},
			{name: "kill", command: []string{"kill"}},
			// The main process hears of it twice.
			{name: "ExecStop", command: []string{"stop", "--no-block"}, setting: "ExecStop=/bin/kill -s TERM $MAINPID"},
		} {
			for _, at := range []instant{
				{name: "at its begin", first: soon, second: late, plain: true},
				{name: "in it, the predecessor last", wait: 1200 * time.Millisecond, first: late, second: soon},
				{name: "in it, the successor last", wait: 1200 * time.Millisecond, first: soon, second: late},
				// systemd has decided on the stop, and the predecessor does not know yet.
				{name: "just before its end", wait: 100 * time.Millisecond, first: 5 * time.Millisecond, second: late},
				{name: "at its end", first: -1 * time.Millisecond, second: late, plain: true},
				{name: "just after its end", first: -20 * time.Millisecond, second: late, plain: true},
				{name: "after its end", first: -300 * time.Millisecond, second: late, plain: true},
			} {
				if at.plain && how.name != "stop" {
					continue
				}
				if i++; !driver.Part(i-1, 60) {
					continue
				}
				t.Run(mode+"/"+how.name+"/"+at.name, func(t *testing.T) {
					t.Parallel()
					stopInADrain(t, mode, how, at)
				})
			}
		}
	}
}

// A stop is a way to ask for one.
type stop struct {
	name    string
	setting string // of the unit
	command []string
}

// An instant of a drain.
type instant struct {
	name          string
	wait          time.Duration // from the successor's first answer on
	first, second time.Duration // when the requests of the two are finished, from the stop on
	plain         bool          // played for one way to ask alone
}

// Late is later than TimeoutStopSec: the service asks for the time.
const soon, late = 500 * time.Millisecond, 1600 * time.Millisecond

func stopInADrain(t *testing.T, mode string, how stop, at instant) {
	d := newDemo(t, "gracedemo.service", "TimeoutStopSec=1", "Restart=on-failure", "KillMode="+mode, how.setting)
	d.Do("start")
	old, group := d.MainPID(), d.Get("ControlGroup")
	first := hold(t, d.addr, d.held)
	next := d.reload()
	second := hold(t, d.addr, d.held)

	driver.Instant(t, at.wait)
	if at.first < 0 {
		first.release()
		driver.Instant(t, -at.first)
	}
	d.Systemctl(how.command...)
	if at.first > 0 {
		time.AfterFunc(at.first, first.release)
	}
	time.AfterFunc(at.second, second.release)

	if how.name == "restart" {
		d.AwaitAnotherMain(old, next)
		d.Await("ActiveState", "active")
	} else {
		d.Await("ActiveState", "inactive|failed")
	}
	left := members(t, group)
	first.by(old)
	second.by(next, old) // for a moment both accept
	equal(t, d.Unit, "Result", "success")
	if how.name == "restart" {
		main := d.MainPID()
		left = slices.DeleteFunc(left, func(pid int) bool { return pid == main })
		if pid := ask(t, d.addr); pid != main {
			t.Errorf("pid %d answers, the main process is pid %d", pid, main)
		}
	}
	equal(t, d.Unit, "NRestarts", "0")
	if len(left) > 0 {
		t.Errorf("processes %v are left over of pid %d and its successor, pid %d", left, old, next)
	}
}

// Three generations: the second one drains, too, and is the main process.
func TestStopInTwoDrains(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for m, mode := range killModes {
		for _, last := range []int{0, 1, 2} {
			if !driver.Part(3*m+last, 12) {
				continue
			}
			t.Run(fmt.Sprintf("%s/generation %d last", mode, last+1), func(t *testing.T) {
				t.Parallel()
				d := newDemo(t, "gracedemo.service", "TimeoutStopSec=1", "Restart=on-failure", "KillMode="+mode)
				d.Do("start")
				group := d.Get("ControlGroup")
				pids := []int{d.MainPID()}
				requests := []*held{hold(t, d.addr, d.held)}
				for range 2 {
					pids = append(pids, d.reload())
					requests = append(requests, hold(t, d.addr, d.held))
				}
				d.Systemctl("stop", "--no-block")
				for n, h := range requests {
					if n == last {
						time.AfterFunc(late, h.release)
					} else {
						time.AfterFunc(soon, h.release)
					}
				}
				d.Await("ActiveState", "inactive|failed")
				left := members(t, group)
				for n, h := range requests {
					h.by(pids[max(n-1, 0) : n+1]...) // for a moment two of them accept
				}
				equal(t, d.Unit, "Result", "success")
				if len(left) > 0 {
					t.Errorf("of pids %v these are left over: %v", pids, left)
				}
			})
		}
	}
}

// A predecessor that stands by is the main process.
func TestStopInTheStandby(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	driver.Each(t, driver.Some(killModes, 8), func(t *testing.T, mode string) {
		d := newDemo(t, "gracedemo.service", "TimeoutStopSec=1", "KillMode="+mode)
		d.useTestServer("-standby 1m")
		d.Do("start")
		group, old := d.Get("ControlGroup"), d.MainPID()
		next := d.reload()
		h := hold(t, d.addr, d.held)
		driver.Instant(t, 1200*time.Millisecond)
		equal(t, d.Unit, "MainPID", strconv.Itoa(old))
		d.Systemctl("stop", "--no-block")
		time.AfterFunc(late, h.release)
		d.Await("ActiveState", "inactive|failed")
		left := members(t, group)
		h.by(next, old)
		equal(t, d.Unit, "Result", "success")
		if len(left) > 0 {
			t.Errorf("of pids %d and %d these are left over: %v", old, next, left)
		}
	})
}

// members returns the processes of a control group, none if it is gone.
func members(t *testing.T, group string) (pids []int) {
	t.Helper()
	if group == "" {
		return nil
	}
	b, err := os.ReadFile("/sys/fs/cgroup" + group + "/cgroup.procs")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(b)) {
		pid, _ := strconv.Atoi(field)
		pids = append(pids, pid)
	}
	return pids
}
